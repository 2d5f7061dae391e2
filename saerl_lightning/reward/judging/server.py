"""ChatServer: asks an OpenAI-compatible server many questions at once, with retries and deadlines that hold.

A server may answer with an error, with garbage, byte by byte, or never. The client library's timeouts are for single
reads, so that a slow drip would pass them: here a deadline is for a whole answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError
from saerl_lightning.reward.judging.apart import Apart
from saerl_lightning.reward.judging.reply import Reply

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState

Body = Mapping[str, Any]  # of a request, as JSON

EXAMPLE = "write e.g. http://127.0.0.1:8000/v1"
PATH = "/chat/completions"
LONGEST_PAUSE_S = 60.0  # between two requests, unless the server asks for more
LARGEST = 4_000_000  # bytes of an answer
AGAIN = {408, 409, 425, 429}  # refusals that pass; 5xx do too


class Unanswered(Exception):
    """A request without a reply, which would fail again."""


class Passing(Unanswered):
    """A request that may succeed later.

    Args:
        said: What became of the request.
        busy: Whether the server answered at all, and asked to come again.
        wait_s: Seconds that the server asked to wait.
    """

    def __init__(self, said: str, busy: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.busy = busy
        self.wait_s = wait_s


@dataclass(frozen=True)
class ChatServer:
    """A server, and how patiently it is asked.

    Args:
        url: Base of the server's paths, as `http://127.0.0.1:8000/v1`, or the whole path of its chat completions.
        key_name: Environment variable that holds the API key; null sends no key.
        concurrency: Largest number of requests at a time.
        retries: Largest number of requests after the first one, for a question.
        backoff_s: Seconds before the first retry; doubled before each further one.
        deadline_s: Largest time for a request, from connecting to the last byte.
        batch_deadline_s: Largest time for all questions that are asked together.
    """

    url: str
    key_name: str | None
    concurrency: int
    retries: int
    backoff_s: float
    deadline_s: float
    batch_deadline_s: float

    def __post_init__(self) -> None:
        """Refuses what is no web address, and one with a password, which the run's files would hold."""
        import httpx2

        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise InputError(f"url {self.url!r} is no web address: {error}; {EXAMPLE}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"url {self.url!r} is no web address; {EXAMPLE}")
        if url.userinfo:
            raise InputError("url has a user or a password, which would be written to config.yaml; write api_key_env")

    @property
    def endpoint(self) -> str:
        """Address of the chat completions."""
        import httpx2

        url = httpx2.URL(self.url)
        path = url.path.rstrip("/")
        return str(url.copy_with(path=path if path.endswith(PATH) else path + PATH))

    def key(self) -> str:
        """Reads the API key; "" if there is none to send.

        Raises:
            InputError: if the environment variable is not set, or holds what no header can.
        """
        if self.key_name is None:
            return ""
        key = os.environ.get(self.key_name, "").strip()
        if not key:
            raise InputError(f"api_key_env is '{self.key_name}', and this environment variable is not set; export it")
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the environment variable '{self.key_name}' holds no key: it has line breaks or no ASCII")
        return key

    def ask(self, bodies: Sequence[Body], answered: Callable[[int, Reply], None], apart: Apart) -> list[Reply]:
        """Asks all questions and waits for the replies.

        Args:
            bodies: Bodies of the requests.
            answered: Function that is called with the position and the reply, as soon as a question has one.
            apart: Place where the requests run.

        Returns:
            One reply a question, in the same order.
        """
        key = self.key()
        return apart.run(lambda: self._all(bodies, answered, key)) if bodies else []

    def first(self, body: Body, apart: Apart) -> Reply:
        """Asks one question at the start of a run; repeats it only where the server asks to come again."""
        key = self.key()

        async def one() -> Reply:
            async with self._client(key) as client:
                return await self._answer(client, body, time.monotonic() + self.batch_deadline_s, key, busy_only=True)

        return apart.run(one)

    async def _all(self, bodies: Sequence[Body], answered: Callable[[int, Reply], None], key: str) -> list[Reply]:
        late = Reply(failure=f"gave no answer within the batch_deadline_s of {self.batch_deadline_s:g} s")
        replies = [late] * len(bodies)
        limit, due = asyncio.Semaphore(self.concurrency), time.monotonic() + self.batch_deadline_s

        async def one(row: int) -> None:
            async with limit:
                reply = await self._answer(client, bodies[row], due, key)
            replies[row] = reply
            if not reply.failure:
                answered(row, reply)

        async with self._client(key) as client:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.batch_deadline_s):
                    await asyncio.gather(*map(one, range(len(bodies))))
        return replies

    @asynccontextmanager
    async def _client(self, key: str) -> AsyncIterator[httpx2.AsyncClient]:
        import httpx2

        # Uncompressed, so that a small answer can't grow beyond the limit while it is read.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_certificates()) as client:
            yield client

    async def _answer(
        self, client: httpx2.AsyncClient, body: Body, due: float, key: str, busy_only: bool = False
    ) -> Reply:
        """Asks one question until it has a reply, the retries are used up, or the next one would be too late."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_before_delay

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Passing) and (error.busy or not busy_only)),
            wait=self._pause,
            stop=stop_after_attempt(self.retries + 1) | stop_before_delay(max(due - time.monotonic(), 0.0)),
            reraise=True,
        )
        try:
            reply = await retrying(self._post, client, json.dumps(body).encode())
        except Unanswered as error:
            said = str(error).replace(key, "***") if key else str(error)
            reply = Reply(failure=said)
        return replace(reply, retries=retrying.statistics["attempt_number"] - 1)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next request: what the server asked for, at least; never the same for two requests."""
        from tenacity import wait_exponential, wait_random

        outcome = state.outcome and state.outcome.exception()
        asked = outcome.wait_s if isinstance(outcome, Passing) else 0.0
        grown = wait_exponential(multiplier=self.backoff_s, max=LONGEST_PAUSE_S)(state)
        return asked + grown + wait_random(0, self.backoff_s)(state)

    async def _post(self, client: httpx2.AsyncClient, content: bytes) -> Reply:
        import httpx2

        try:
            async with asyncio.timeout(self.deadline_s):
                async with client.stream("POST", self.endpoint, content=content) as response:
                    body = await _read(response)
        except TimeoutError as error:
            raise Passing(f"gave no whole answer within the deadline_s of {self.deadline_s:g} s") from error
        except httpx2.ConnectError as error:
            raise Passing(f"can't be reached: {_root(error)}") from error
        except (httpx2.HTTPError, OSError) as error:
            raise Passing(f"broke off: {_root(error)}") from error
        status = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in AGAIN or response.status_code >= 500:
            raise Passing(f"answered {status}: {_said(body)}", busy=True, wait_s=_retry_after(response.headers))
        if response.status_code != 200:
            raise Unanswered(f"answered {status}: {_said(body)}")
        return _reply(body)


@cache
def _certificates() -> ssl.SSLContext:
    """The certificates that are trusted, which take a tenth of a second to read."""
    import httpx2

    return httpx2.create_ssl_context()


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > LARGEST:
            raise Passing(f"sent more than {LARGEST:,} bytes")
    return bytes(body)


def _reply(body: bytes) -> Reply:
    """Reads a chat completion."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError
        return Reply(text or "", choice.get("finish_reason") == "length")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Passing(f"answered 200 with what is no chat completion: {_said(body)}") from error


def _root(error: BaseException) -> str:
    """What went wrong in the first place; the client library says it in words of its own."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__} {_short(str(error))}" if str(error) else type(error).__name__


def _said(body: bytes) -> str:
    """The message of an error as servers write it, or else the beginning of the body."""
    try:
        content = json.loads(body)
        found = content.get("error", content)
        found = found if isinstance(found, str) else found.get("message") or found.get("detail")
        return _short(str(found or content))
    except (ValueError, AttributeError, RecursionError):
        return _short(body[:1000].decode(errors="replace"))


def _short(text: str) -> str:
    return repr(" ".join(text.split())[:200]) if text.strip() else "nothing"


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds that a server asks to wait, given as a number or as a date; 0 if it gives none."""
    given = headers.get("retry-after", "")
    try:
        return max(0.0, float(given)) if given.replace(".", "", 1).isdigit() else _until(given)
    except (ValueError, TypeError):
        return 0.0


def _until(date: str) -> float:
    return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
