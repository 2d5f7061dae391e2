"""Fleet: the servers of a run, asked from a thread of their own; one that fails is given up, and the others go on."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from saerl_lightning.errors import RunStopped
from saerl_lightning.rollout.serving.answer import CompletionGroup, ForeignWeights, read_group
from saerl_lightning.rollout.serving.connection import UNLOAD_ADAPTERS, ServerFault, VLLMServer

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)
Result = TypeVar("Result")

ROUTE = "/inference/v1/generate"
FIRST_PAUSE_S = 0.5  # before a request is repeated; doubled before each further one
LONGEST_PAUSE_S = 30.0
JITTER = random.Random()  # the global random state is the run's


class Fleet:
    """Servers that are asked at once, and that share the prompts.

    Args:
        servers: The servers, in the order of their addresses.
        key: API key of all of them; "" sends none.
        concurrency: Largest number of prompts that are asked at a time.
        timeout_s: Largest time of one request, in seconds.
        retries: Largest number of repetitions of a request that a living server did not answer as it should.
    """

    def __init__(
        self, servers: Sequence[VLLMServer], key: str, concurrency: int, timeout_s: float, retries: int
    ) -> None:
        self.servers = list(servers)
        self.timeout_s = timeout_s
        self.retries = retries
        self._key = key
        self._loop = asyncio.new_event_loop()
        # A daemon: a look-up of a name that hangs must not keep the process.
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self.client: httpx2.AsyncClient = self.run(self._open(concurrency))
        self._limit = asyncio.Semaphore(concurrency)

    @property
    def alive(self) -> list[VLLMServer]:
        """Servers that are still asked."""
        return [each for each in self.servers if not each.given_up]

    def begin(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Starts a coroutine in the fleet's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine in the fleet's thread and waits for its result; Ctrl-C cancels it."""
        future = self.begin(work)
        try:
            return future.result()
        finally:
            future.cancel()

    def each(
        self, path: str, body: Callable[[VLLMServer], Any] | Any = None, method: str = "POST"
    ) -> dict[VLLMServer, Any]:
        """Sends a request to every living server at once; one that fails is given up.

        Args:
            path: Path and query of the route.
            body: Content, or a function that makes it for a server; null sends none.
            method: HTTP method of the request.

        Returns:
            The answers of those that answered.
        """
        return self.run(self.answers(path, body, method))

    async def answers(self, path: str, body: Any = None, method: str = "POST") -> dict[VLLMServer, Any]:
        """Coroutine of `each`."""

        async def one(server: VLLMServer) -> Any:
            try:
                content = body(server) if callable(body) else body
                return await server.call(self.client, path, content, method, self.timeout_s)
            except ServerFault as fault:
                self.give_up(server, str(fault))
                return fault

        asked = self.alive
        found = await asyncio.gather(*map(one, asked))
        return {server: each for server, each in zip(asked, found, strict=True) if not isinstance(each, ServerFault)}

    def give_up(self, server: VLLMServer, why: str) -> None:
        """Asks a server no more; its running requests go to the others."""
        if server.given_up:
            return
        server.given_up = why
        log.warning("the server %s %s; it is asked no more, %d are left", server.url, why, len(self.alive))
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in server.running])

    def require_any(self) -> None:
        """Stops the run if no server is left.

        Raises:
            RunStopped: naming each server and what became of it.
        """
        if not self.alive:
            ends = "; ".join(f"{each.url} {each.given_up}" for each in self.servers)
            raise RunStopped(f"no vLLM server is left: {ends}; look at its log, start it again, and go on with the run")

    def ask(self, bodies: Sequence[dict[str, Any]], first: int, weights: str) -> list[Future[CompletionGroup]]:
        """Asks for the groups of several prompts.

        Args:
            bodies: Content of one request a prompt.
            first: Place of the server that gets the first prompt; the next one gets the second, and so on.
            weights: Version of the weights that the servers must have.

        Returns:
            The groups that are to come, in the order of the prompts. Each may raise RunStopped.
        """
        size = len(self.servers)
        return [self.begin(self._group(body, (first + i) % size, weights)) for i, body in enumerate(bodies)]

    async def _group(self, body: dict[str, Any], home: int, weights: str) -> CompletionGroup:
        """Asks the servers for one group, from its home on, until one gives it. Only that answer is ever read."""
        faults: list[str] = []
        async with self._limit:
            while True:
                self.require_any()
                server = next(s for s in self.servers[home:] + self.servers[:home] if not s.given_up)
                try:
                    return read_group(await self._post(server, body), body, weights)
                except ForeignWeights as error:
                    if error.is_stop:
                        raise RunStopped(f"the server {server.url} {error}") from error
                    self.give_up(server, str(error))
                except ServerFault as fault:
                    if server.given_up:
                        continue
                    if fault.status == 404:  # it does not know our model or adapters any more
                        self.give_up(server, f"{fault}; was it restarted?")
                        continue
                    if fault.is_refusal:
                        raise RunStopped(f"the server {server.url} {fault}") from fault
                    await self._examine(server, fault)
                    faults.append(f"{server.url} {fault}")
                    if len(faults) > self.retries and not server.given_up:
                        raise RunStopped(
                            f"a prompt was given up after {len(faults)} requests: {'; '.join(faults)}"
                        ) from fault
                    if not server.given_up:
                        home = (self.servers.index(server) + 1) % len(self.servers)
                        await asyncio.sleep(_pause(len(faults)))

    async def _post(self, server: VLLMServer, body: dict[str, Any]) -> Any:
        """One request, which ends as a fault when the server is given up meanwhile."""
        asked = {**body, "model": server.adapters or server.model}
        task = asyncio.ensure_future(server.call(self.client, ROUTE, asked, limit_s=self.timeout_s))
        server.running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if server.given_up and task.cancelled() and not _is_cancelled():
                raise ServerFault(server.given_up) from None
            task.cancel()
            raise
        finally:
            server.running.discard(task)

    async def _examine(self, server: VLLMServer, fault: ServerFault) -> None:
        """Gives a server up that overran its time, or that is not well any more."""
        if fault.late:
            self.give_up(server, f"{fault} (engine.timeout_s)")
        elif not fault.is_busy:
            try:
                await server.call(self.client, "/health", method="GET")
            except ServerFault as ill:
                self.give_up(server, f"{fault}, and then {ill}")

    async def _open(self, concurrency: int) -> httpx2.AsyncClient:
        import httpx2

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        room = concurrency + len(self.servers) + 8  # requests beside those for groups
        limits = httpx2.Limits(max_connections=room, max_keepalive_connections=room, keepalive_expiry=2.0)
        # No proxy of the environment: a run's servers are on its own network.
        return httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=False)

    def release(self) -> None:
        """Lets the living servers go on with other requests, and takes the run's name off them, as far as they answer."""

        async def one(server: VLLMServer) -> None:
            with suppress(ServerFault):
                await server.call(self.client, "/resume")
                await server.call(self.client, "/update_weight_version", {"new_version": "default"})
                if server.adapters:
                    await server.call(self.client, UNLOAD_ADAPTERS, {"lora_name": server.adapters})

        async def all_of_them() -> None:
            await asyncio.gather(*map(one, self.alive))

        self.run(all_of_them())

    def close(self) -> None:
        """Ends all requests and the thread."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()
        await asyncio.sleep(0.01)  # sockets are closed in the loop's next turns


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _pause(faults: int) -> float:
    """Seconds before the next request: doubled every time, and never the same for two requests."""
    return min(FIRST_PAUSE_S * 2 ** (faults - 1), LONGEST_PAUSE_S) * JITTER.uniform(1, 1.5)
