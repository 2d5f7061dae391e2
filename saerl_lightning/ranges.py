"""Ranges of the numbers that a user can set: written beside their type, and refused in one place.

A constructor says `drop: Share = 0.1` and ends in `require_in_range(self)`. To a type checker and to the command line `Share`
is `float`. NaN and infinity are in no range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from saerl_lightning.errors import InputError

LARGEST = 2**31 - 1  # of counts: larger ones overflow in some library
HUGE = 1e9  # of other numbers: beyond it float32 sums lose whole units


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`.

    Args:
        least: the smallest.
        most: the largest.
        open_below: whether `least` itself is out of it.
        open_above: whether `most` itself is out of it.
    """

    least: float
    most: float
    open_below: bool = False
    open_above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        above = value > self.least if self.open_below else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        low = f"above {self.least:.10g}" if self.open_below else f"from {self.least:.10g}"
        return f"{low} {'to below' if self.open_above else 'to'} {self.most:.10g}"


Count = Annotated[int, Range(1, LARGEST)]
LongCount = Annotated[int, Range(1, 2**53)]  # tokens of a whole run; as float64 they are still exact
CountFrom0 = Annotated[int, Range(0, LARGEST)]
CountFrom2 = Annotated[int, Range(2, LARGEST)]
SEEDS = Range(0, 2**32 - 1)
Seed = Annotated[int, SEEDS]  # what NumPy's older generators, scikit-learn and Lightning take
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, open_above=True)]
PositiveShare = Annotated[float, Range(0, 1, open_below=True)]
Positive = Annotated[float, Range(0, HUGE, open_below=True)]
NotNegative = Annotated[float, Range(0, HUGE)]
Finite = Annotated[float, Range(-HUGE, HUGE)]
Workers = Annotated[int, Range(1, 1024)]  # processes at a time
Deadline = Annotated[float, Range(0, 86_400, open_below=True)]  # seconds, a day at most


def require_in_range(owner: object, **handed_on: object) -> None:
    """Refuses an object's numbers that are outside the ranges in the annotations of its constructor.

    Args:
        owner: holds its constructor's arguments under their own names.
        handed_on: arguments that it does not hold, by name.

    Raises:
        InputError: for the first such number, with its range.
    """
    for kind in reversed(type(owner).__mro__):
        hints = _ranged(kind.__init__, kind.__module__) if "__init__" in vars(kind) else {}
        _require(hints, {**vars(owner), **handed_on}, f"{type(owner).__name__}.")


def require_arguments(function: Callable[..., object], given: Mapping[str, object]) -> None:
    """Refuses arguments of a tool that are outside the ranges in its annotations.

    Args:
        function: the tool.
        given: arguments by name; others than the tool's are not looked at.

    Raises:
        InputError: for the first such number, with its range.
    """
    _require(_ranged(function, function.__module__), given, "--")


def _require(hints: Mapping[str, Any], given: Mapping[str, object], prefix: str) -> None:
    for name, hint in hints.items():
        value, allowed = given.get(name), next(iter(ranges(hint)))
        wrong = next((number for number in _numbers(value) if not allowed.holds(number)), None)
        if wrong is not None:
            kind = "a whole number" if int in _parts(hint) else "a number"
            or_null = ", or null" if type(None) in _parts(hint) else ""
            several = "" if value is wrong else f" {value}, with {wrong}"
            raise InputError(f"{prefix}{name} is{several or f' {wrong}'}; write {kind} {allowed}{or_null}")


def _numbers(value: object) -> Iterator[float]:
    """The numbers in a value: itself, or what a list or the values of a mapping hold."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        yield from (number for each in value.values() for number in _numbers(each))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (number for each in value for number in _numbers(each))


@cache
def _ranged(function: Callable[..., object], module: str) -> dict[str, Any]:
    """The annotations of a function that have a range."""
    try:
        hints = get_type_hints(function, vars(sys.modules[module]), include_extras=True)
    except NameError:  # a user's class may name types that only a type checker imports
        return {}
    return {name: hint for name, hint in hints.items() if name != "return" and any(ranges(hint))}


def ranges(hint: Any) -> Iterator[Range]:
    """The ranges in an annotation, however deep."""
    return (part for part in _parts(hint) if isinstance(part, Range))


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
    if isinstance(hint, type) or not hasattr(hint, "__metadata__"):
        return
    yield from hint.__metadata__
