"""Progress of long work: a bar on a terminal, elsewhere a line every 30 seconds with rate and time left."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY_S = 30.0  # between two lines


def on_terminal() -> bool:
    """Whether somebody watches: a bar overwrites itself on a terminal and in a notebook, and fills a log with copies."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Bar(tqdm):
    """tqdm's bar on a terminal. Elsewhere it prints a line on stderr every 30 seconds, and none for what takes less.

    Args:
        parts: Iterable that the bar counts; None where `update` counts.
        total: Number of units.
        desc: Name of the work, as in `signals`.
        unit: Name of one unit, as in `token`.
        initial: Number of units that were done before.
        disable: Whether to show nothing at all.
    """

    def __init__(
        self,
        parts: Iterable[Any] | None = None,
        *,
        total: int,
        desc: str,
        unit: str,
        initial: int = 0,
        disable: bool = False,
    ) -> None:
        self.in_lines = not on_terminal()
        self.said = time.monotonic()
        settings: dict[str, Any] = {}
        if self.in_lines:  # every update looks at the clock, and what tqdm writes by itself goes nowhere
            settings = {"mininterval": EVERY_S, "maxinterval": 2 * EVERY_S, "miniters": 1, "file": io.StringIO()}
        super().__init__(parts, total=total, desc=desc, unit=unit, initial=initial, disable=disable, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draws the bar, or prints the line if the last one is 30 seconds old."""
        if not self.in_lines:
            super().display(msg, pos)
        elif time.monotonic() - self.said >= EVERY_S:
            self.said = time.monotonic()
            print(self.line(self.format_dict["elapsed"]), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The line after some seconds of work."""
        done, total = self.n - self.initial, int(self.total or 0)
        share = f" ({self.n / total:.0%})" if total else ""
        behind = f"; {self.postfix}" if self.postfix else ""
        return (
            f"{self.desc.rstrip(': ')}: {self.n:,} of {total:,} {self.unit}s{share}, "
            f"{rate_text(done / seconds, self.unit)}, {time_left(done, total - self.initial, seconds)}{behind}"
        )


def rate_text(rate: float, unit: str) -> str:
    """Units a second, or where that is below one, seconds a unit."""
    if 0 < rate < 1:
        return f"{1 / rate:.3g} s a {unit}"
    return f"{rate:,.0f} {unit}s/s" if rate >= 100 else f"{rate:.3g} {unit}s/s"


def time_left(done: float, total: float, seconds: float) -> str:
    """What the rest will take at the pace of what is done.

    Args:
        done: Work that is done, in any unit.
        total: Whole work, in the same unit.
        seconds: Time that the work done has taken.
    """
    if done <= 0:
        return "time left not known yet"
    return f"{duration(max(0.0, total - done) * seconds / done)} left"


def duration(seconds: float) -> str:
    """Seconds in the unit that people think in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
