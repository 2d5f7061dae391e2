"""Apart: runs coroutines in a thread of their own, so that they can be waited for anywhere and given up at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Run:
    """One coroutine that runs, which any thread may cancel at any time."""

    def __init__(self) -> None:
        self._task: asyncio.Task | None = None
        self._cancelled = False

    async def whole(self, main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        self._task = asyncio.current_task()
        if self._cancelled:  # before there was a task
            raise asyncio.CancelledError
        return await main()

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            with suppress(RuntimeError):  # its loop has ended
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class Apart:
    """Runs coroutines from any thread, also where an event loop runs already, as in a notebook."""

    def __init__(self) -> None:
        self._runs: set[_Run] = set()

    def run(self, main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Runs a coroutine and returns its result. Ctrl-C ends the wait at once, and cancels the coroutine.

        Args:
            main: Function that makes the coroutine.

        Raises:
            CancelledError: if `cancel` was called meanwhile.
        """
        run, done = _Run(), Future[Result]()
        # A daemon: a look-up of a name that hangs must not keep the process.
        thread = Thread(target=_serve, args=(run, main, done), name="judge", daemon=True)
        self._runs.add(run)
        try:
            thread.start()
            return done.result()
        except BaseException:
            run.cancel()
            raise
        finally:
            self._runs.discard(run)

    def cancel(self) -> None:
        """Cancels all that runs; who waits for it gets a CancelledError."""
        for run in list(self._runs):
            run.cancel()


def _serve(run: _Run, main: Callable[[], Coroutine[Any, Any, Result]], done: Future[Result]) -> None:
    with asyncio.Runner() as runner:
        # Told before the runner closes, which waits for look-ups of names that nobody waits for any more.
        try:
            done.set_result(runner.run(run.whole(main)))
        except asyncio.CancelledError:
            done.set_exception(CancelledError())
        except BaseException as error:
            done.set_exception(error)
