"""Kinds of values in the files of other trainers: a number may be written as text there, a list as one item."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
        says: What to write, for messages.
        read: Function that returns the value, or raises ValueError or TypeError.
    """

    says: str
    read: Callable[[object], object]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    found = float(value)  # YAML reads 1e-6 as text
    if not math.isfinite(found):
        raise ValueError
    return found


def _whole(value: object) -> int:
    found = _number(value)
    if found != int(found):
        raise ValueError
    return int(found)


def _flag(value: object) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    return known[str(value).lower()] if str(value).lower() in known else _refuse()


def _refuse() -> bool:
    raise ValueError


def _text(value: object) -> str:
    if isinstance(value, list | Mapping):
        raise TypeError
    return str(value)


def _path(value: object) -> str:
    text = _text(value)
    for home in ("${HOME}/", "$HOME/", "~/"):
        if text.startswith(home):
            return str(Path.home() / text.removeprefix(home))
    return text


def _texts(value: object) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, list) else [_text(value)]


def _numbers(value: object) -> list[float]:
    return [_number(each) for each in value] if isinstance(value, list) else [_number(value)]


def _scalars(value: object) -> dict[str, object]:
    if not isinstance(value, Mapping) or any(isinstance(each, list | Mapping | None) for each in value.values()):
        raise TypeError
    return {str(key): each for key, each in value.items()}


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError
    return {str(key): each for key, each in value.items()}


anything = Kind("another value", lambda value: value)
number = Kind("a number", _number)
whole = Kind("a whole number", _whole)
count = Kind("a whole number, 1 or more", lambda value: _whole(value) if _whole(value) >= 1 else _refuse())
flag = Kind("true or false", _flag)
text = Kind("a text", _text)
path = Kind("a path", _path)
texts = Kind("a text, or a list of texts", _texts)
paths = Kind("a path, or a list of paths", lambda value: [_path(each) for each in _texts(value)])
numbers = Kind("a list of numbers", _numbers)
scalars = Kind("a mapping from names to numbers, texts, true or false", _scalars)
mapping = Kind("a mapping from names to values", _mapping)
