"""Times the phases of a step, and tells whoever listens which one runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Adds up wall-clock seconds by phase name until `drain`.

    `listener`, where set, is called with the name of each phase as it begins: a progress bar says what is going on.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str], None] | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times the enclosed block as phase `name`."""
        if self.listener is not None:
            self.listener(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():  # kernels run on after Python has moved on
                torch.cuda.synchronize()
            self._seconds[name] += time.perf_counter() - start

    def drain(self) -> dict[str, float]:
        """Returns the seconds of each phase since the last call, and starts anew."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
