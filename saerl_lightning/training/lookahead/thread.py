"""in_thread: runs a function in a thread of its own; what it returns or raises is a future's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(name: str, work: Callable[[], T]) -> tuple[Future[T], threading.Thread]:
    """Begins to run a function in a second thread, and returns its future and the thread.

    The thread is a daemon: a grader of a user's, or a server, that hangs must not keep the process.

    Args:
        name: Name of the thread.
        work: Function without arguments.
    """
    future: Future[T] = Future()
    thread = threading.Thread(target=_fulfil, args=(future, work), name=name, daemon=True)
    thread.start()
    return future, thread


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    """Gives a future what the function returns or raises."""
    try:
        future.set_result(work())
    except BaseException as error:  # whatever ends the thread, the step that waits for it must learn of it
        future.set_exception(error)
