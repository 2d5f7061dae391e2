"""Allowed ranges of numeric settings: declared in the type annotation, checked in one place, as are parts.

A constructor declares `drop: Share = 0.1` and ends with `require_in_range(self)`. Type checkers and the command line
see `Share` as `float`. NaN and infinity are never in range.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from saerl_lightning.errors import InputError, shown
from saerl_lightning.given.parts import is_part_or_text, require_parts, texts_of_paths

LARGEST = 2**31 - 1  # largest count: some libraries overflow beyond it
HUGE = 1e9  # largest other number: beyond it, float32 sums lose whole units


@dataclass(frozen=True)
class Range:
    """An interval of allowed numbers.

    Args:
        least: Smallest number of the range.
        most: Largest number of the range.
        open_below: Whether `least` itself is excluded.
        open_above: Whether `most` itself is excluded.
    """

    least: float
    most: float
    open_below: bool = False
    open_above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range. NaN never is."""
        above = value > self.least if self.open_below else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        low = f"above {self.least:.10g}" if self.open_below else f"from {self.least:.10g}"
        return f"{low} {'to below' if self.open_above else 'to'} {self.most:.10g}"


Count = Annotated[int, Range(1, LARGEST)]
LongCount = Annotated[int, Range(1, 2**53)]  # tokens of a whole run: exact as float64
CountFrom0 = Annotated[int, Range(0, LARGEST)]
CountFrom2 = Annotated[int, Range(2, LARGEST)]
SEEDS = Range(0, 2**32 - 1)
Seed = Annotated[int, SEEDS]  # accepted by NumPy's older generators, scikit-learn and Lightning
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, open_above=True)]
PositiveShare = Annotated[float, Range(0, 1, open_below=True)]
Positive = Annotated[float, Range(0, HUGE, open_below=True)]
NotNegative = Annotated[float, Range(0, HUGE)]
Power = Annotated[float, Range(0, 10)]  # of numbers up to HUGE, so that none overflows
Finite = Annotated[float, Range(-HUGE, HUGE)]
Workers = Annotated[int, Range(1, 1024)]  # number of processes
Deadline = Annotated[float, Range(0, 86_400, open_below=True)]  # seconds, at most a day


def constructors(cls: type) -> Iterator[type]:
    """Yields the classes whose constructors get a class's arguments: its own, and bases while `**kwargs` are passed on."""
    for kind in cls.__mro__:
        if "__init__" in vars(kind):
            yield kind
            if all(each.kind is not each.VAR_KEYWORD for each in inspect.signature(kind.__init__).parameters.values()):
                return


def require_in_range(owner: object, **handed_on: object) -> None:
    """Refuses an object whose numbers are outside the ranges in its constructor's annotations, or whose parts are others.

    A `Path` that was given for a text becomes its text, because configs and checkpoints hold no other.

    Args:
        owner: Object that stores its constructor's arguments under their own names.
        handed_on: Constructor arguments that the object does not store, by name.

    Raises:
        InputError: for the first number out of range, with the range, or the first part or text that is none.
    """
    given, name = {**vars(owner), **handed_on}, type(owner).__name__
    for kind in reversed(type(owner).__mro__):
        if "__init__" not in vars(kind):
            continue
        # Steps make some records, such as Sampling, which have no parts.
        if parts := _part_hints(kind.__init__, kind.__module__):
            require_parts(name, parts, given)
            for argument, text in texts_of_paths(name, parts, given).items():
                object.__setattr__(owner, argument, text)
        _require(_hints(kind.__init__, kind.__module__), given, f"{name}.")


def require_arguments(function: Callable[..., object], given: Mapping[str, object]) -> None:
    """Refuses arguments of a command-line tool that are outside the ranges in its annotations.

    Args:
        function: Function whose signature is the tool's command line.
        given: Argument values by name. Names that the tool does not have are ignored.

    Raises:
        InputError: for the first number out of range; the message states the range.
    """
    _require(_hints(function, function.__module__), given, "--")


def _require(hints: Mapping[str, Any], given: Mapping[str, object], prefix: str) -> None:
    for name, hint in hints.items():
        allowed, value = next(ranges(hint), None), given.get(name)
        if allowed is None or value is None:
            continue
        kinds = list(_nested_types(hint))
        whole = int in kinds and float not in kinds
        or_null = ", or null" if type(None) in kinds else ""
        instead = f"write {'a whole number' if int in kinds else 'a number'} {allowed}{or_null}"
        if _is_other(value, kinds):
            raise InputError(f"{prefix}{name} is {shown(value)}; {instead}")
        # A fraction has no place among whole numbers, even one such as 8.0.
        fits = Integral if whole else Real
        wrong = next((n for n in _numbers(value) if not (issubclass(type(n), fits) and allowed.holds(n))), None)
        if wrong is not None:
            several = "" if value is wrong else f" {value}, with {wrong}"
            raise InputError(f"{prefix}{name} is{several or f' {wrong}'}; {instead}")


def _is_other(value: object, kinds: Sequence[Any]) -> bool:
    """Whether a value is no number, and of no other kind that is admitted."""
    if isinstance(value, Real) or any(get_origin(kind) not in (None, Union, UnionType, Annotated) for kind in kinds):
        return False
    return not isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def _numbers(value: object) -> Iterator[Any]:
    """Yields the numbers in a value: a number itself, or those in a list or in a mapping's values."""
    if isinstance(value, Real):
        yield value
    elif isinstance(value, Mapping):
        yield from (number for each in value.values() for number in _numbers(each))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (number for each in value for number in _numbers(each))


@cache
def _hints(function: Callable[..., object], module: str) -> dict[str, Any]:
    """Returns the annotations of a function's arguments."""
    try:
        hints = get_type_hints(function, vars(sys.modules[module]), include_extras=True)
    except NameError:  # a user's class may name types that only a type checker imports
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


@cache
def _part_hints(function: Callable[..., object], module: str) -> dict[str, Any]:
    return {name: hint for name, hint in _hints(function, module).items() if is_part_or_text(hint)}


def ranges(hint: Any) -> Iterator[Range]:
    """Yields the ranges in an annotation, at any depth."""
    return (part for part in _nested_types(hint) if isinstance(part, Range))


def _nested_types(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _nested_types(part)
    if isinstance(hint, type) or not hasattr(hint, "__metadata__"):
        return
    yield from hint.__metadata__
