"""SIGTERM and Ctrl-C: the first one lets the step in hand end and be saved, the second one ends the run at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch.utilities import rank_zero_only

HEEDED = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Ends the process as shells know it: 128 and the signal's number, 143 for SIGTERM and 130 for Ctrl-C.

    Args:
        number: of the signal.
        at_once: no step is waited for, and the run's other processes do not know of it.
    """

    def __init__(self, number: int, at_once: bool = False) -> None:
        super().__init__(128 + number)
        self.at_once = at_once
        self.signal = signal.Signals(number).name


class StopSignals:
    """What this process was asked by signals, while `heeded`. Outside of training a signal ends it at once."""

    def __init__(self) -> None:
        self.training = False  # set while there is a step to wait for
        self.received: int | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Takes the signals while the block runs; in a thread, which gets none, it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in HEEDED}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals, also from whoever took them since, as Lightning does before it trains."""
        if threading.current_thread() is threading.main_thread():
            for number in HEEDED:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.received is not None:
            raise Stopped(number, at_once=True)
        self.received = number
        if getattr(rank_zero_only, "rank", 0) == 0:
            name = signal.Signals(number).name
            print(
                f"\n{name}: the step in hand is finished and saved; once more to end at once",
                file=sys.stderr,
                flush=True,
            )
