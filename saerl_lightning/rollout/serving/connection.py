"""VLLMServer: one server's address, and requests to it whose deadline is for the whole answer."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    import httpx2

EXAMPLE = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOAD_ADAPTERS, UNLOAD_ADAPTERS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"  # which answer by a text
HEALTH_S = 5.0  # a server that is well answers at once: the route asks the process, not the model


class ServerFault(Exception):
    """A request that a server did not answer as it should.

    Args:
        said: What the server did, as the end of a sentence that begins with its address.
        status: HTTP status; 0 if there was no answer.
        late: Whether the answer was not there in time.
    """

    def __init__(self, said: str, status: int = 0, late: bool = False) -> None:
        super().__init__(said)
        self.status = status
        self.late = late

    @property
    def is_busy(self) -> bool:
        """Whether the server asked to come again."""
        return self.status in (408, 425, 429)

    @property
    def is_refusal(self) -> bool:
        """Whether the request itself is wrong, so that no server would answer it."""
        return 400 <= self.status < 500 and not self.is_busy


@dataclass(eq=False)
class VLLMServer:
    """A server, and whether it is still asked.

    Args:
        url: Base address, as `http://127.0.0.1:8000`.
        model: Name of the model, as the server knows it; set once it was asked.
        adapters: Name of the adapters that it samples with; "" for none.
        given_up: Reason why it is asked no more; "" while it is.
        running: Requests that are waited for; cancelled when it is given up.
    """

    url: str
    model: str = ""
    adapters: str = ""
    given_up: str = ""
    running: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def host(self) -> str:
        """Host name or address."""
        import httpx2

        return httpx2.URL(self.url).host

    @property
    def port(self) -> int:
        """Port that it listens at.

        Raises:
            InputError: if the address has none.
        """
        import httpx2

        port = httpx2.URL(self.url).port
        if port is None:
            raise InputError(f"the server {self.url} has no port to listen at; write e.g. {EXAMPLE}")
        return port

    @property
    def is_near(self) -> bool:
        """Whether it is reached through this machine's loopback."""
        return self.host in LOOPBACK

    async def call(
        self, client: httpx2.AsyncClient, path: str, body: Any = None, method: str = "POST", limit_s: float = HEALTH_S
    ) -> Any:
        """Sends a request and reads the answer.

        Args:
            client: Client that keeps the connections.
            path: Path and query of the route.
            body: Content, sent as JSON; null sends none.
            method: HTTP method of the request.
            limit_s: Largest time until the last byte of the answer, in seconds.

        Returns:
            The JSON of the answer, or its text where the route answers by one; None if it is empty.

        Raises:
            ServerFault: if there is no whole answer in time, or it is an error or no JSON.
        """
        import httpx2

        content = None if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(limit_s):
                answer = await client.request(method, self.url + path, content=content)
        except TimeoutError as error:
            raise ServerFault(f"gave no whole answer to {path} within {limit_s:g} s", late=True) from error
        except (httpx2.HTTPError, OSError) as error:
            raise ServerFault(f"can't be reached, or broke off at {path}: {_root(error)}") from error
        if answer.status_code != 200:
            raise ServerFault(f"answered {path} with {answer.status_code}: {_said(answer.content)}", answer.status_code)
        if path in (LOAD_ADAPTERS, UNLOAD_ADAPTERS):
            return answer.text
        try:
            return json.loads(answer.content) if answer.content else None
        except ValueError as error:
            raise ServerFault(f"answered {path} with what is no JSON: {_said(answer.content)}", 200) from error


def require_urls(urls: list[str]) -> list[str]:
    """Refuses what is no list of web addresses; returns them without a slash at the end.

    Raises:
        InputError: naming the address.
    """
    import httpx2

    if not urls:
        raise InputError(f"ServerEngine.urls is empty; write the servers' addresses, as [{EXAMPLE}]")
    plain = [each.rstrip("/") for each in urls]
    for url in plain:
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise InputError(f"ServerEngine.urls has {url!r}, no web address: {error}; write e.g. {EXAMPLE}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.path not in ("", "/"):
            raise InputError(f"ServerEngine.urls has {url!r}; write a server's base address, as {EXAMPLE}")
        if parsed.userinfo:
            raise InputError(
                "ServerEngine.urls has a user or a password, which config.yaml would hold; write api_key_env"
            )
    if twice := sorted({url for url in plain if plain.count(url) > 1}):
        raise InputError(f"ServerEngine.urls has {twice[0]} twice; name every server once")
    return plain


def api_key(variable: str | None) -> str:
    """Reads the API key from its environment variable; "" if there is none to send.

    Raises:
        InputError: if the variable is not set, or holds what no header can.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise InputError(f"engine.api_key_env is '{variable}', and this environment variable holds no key; export it")
    return key


def _root(error: BaseException) -> str:
    """What went wrong in the first place; the client library says it in words of its own."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__} {_short(str(error))}" if str(error) else type(error).__name__


def _said(content: bytes) -> str:
    """The message of an error as vLLM writes it, or else the beginning of the content."""
    try:
        found = json.loads(content)
        found = found.get("error") or found.get("detail") or found
        return _short(str(found.get("message", found) if isinstance(found, dict) else found))
    except (ValueError, AttributeError, RecursionError):
        return _short(content[:1000].decode(errors="replace"))


def _short(text: str) -> str:
    return repr(" ".join(text.split())[:200]) if text.strip() else "nothing"
