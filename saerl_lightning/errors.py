"""The two ways a run ends on purpose, and what their messages are made of.

`cli.main` prints either as one line and exits with code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input at the door. The message says what was wrong, the value seen, and what to write instead."""


class RunStopped(RuntimeError):
    """A run that must not go on (wrong weights in the sampler, NaN in the loss). The last checkpoint is kept.

    Args:
        message: what is said.
        everywhere: every process of the run raises it at once, so that it is enough if the first one says so.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


NAME = re.compile(r"\w[\w .,:;+=@()%-]{0,99}")


def require_name(what: str, name: str) -> None:
    """Refuses a name that would lead out of its folder, hide itself, or be read as a flag.

    Args:
        what: has the name, for the message.
        name: as it was given.

    Raises:
        InputError: if it is no plain name.
    """
    if not NAME.fullmatch(name) or name != name.strip():
        raise InputError(
            f"{what} {name[:120]!r}: the name becomes part of a path or of a metric's name; write 1 to 100 letters, digits, "
            "'_', '-' or '.', the first a letter or a digit"
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Half a sentence with the nearest names, empty where none is near."""
    known = list(dict.fromkeys(names))
    lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), lower, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(lower[each]) for each in near)}?" if near else ""


def first_line(error: Exception) -> str:
    """First line of what a library's error says, without its full stop; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
