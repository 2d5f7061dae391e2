"""Exceptions that end a run on purpose, and helpers for their messages.

`cli.main` prints them as one line and exits with code 2. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Invalid input. The message gives the fault, the value seen, and a correct value."""


class RunStopped(RuntimeError):
    """A run that must not continue (wrong weights in the sampler, NaN in the loss). The last checkpoint is kept.

    Args:
        message: One line for the user.
        everywhere: Whether every process of the run raises this error at the same time, so that one process may report
            it.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


NAME = re.compile(r"\w[\w .,:;+=@()%-]{0,99}")


def require_name(what: str, name: str) -> None:
    """Refuses a name that could leave its folder, be a hidden file, or be read as a flag.

    Args:
        what: Kind of thing that is named, for the message.
        name: Name as the user wrote it.

    Raises:
        InputError: if it is no plain name.
    """
    if not NAME.fullmatch(name) or name != name.strip():
        raise InputError(
            f"{what} {name[:120]!r}: the name becomes part of a path or of a metric's name; write 1 to 100 letters, digits, "
            "'_', '-' or '.', the first a letter or a digit"
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggests the nearest known names as the end of a sentence; returns "" if none is near."""
    # Without the suffix of configs: unlike names would be near each other by their common end.
    lower = {each.lower().removesuffix(".yaml"): each for each in dict.fromkeys(names)}
    near = get_close_matches(name.lower().removesuffix(".yaml"), lower, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(lower[each]) for each in near)}?" if near else ""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message without its full stop, or the error's class if the message is empty."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
