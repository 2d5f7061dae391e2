"""Exceptions that end a run on purpose, and helpers for their messages.

`cli.main` prints them as one line and exits with code 2. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """Invalid input. The message gives the fault, the value seen, and a correct value."""

    everywhere = False  # whether every process of the run ends by this mistake, so that one of them may report it


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


def shown(value: object) -> str:
    """Describes a value that a user gave: a plain one as it is written, any other by its class, without its address."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.80}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' or name == 'ndarray' else 'a'} {name}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggests the nearest known names as the end of a sentence; returns "" if none is near."""
    # Without the suffix of configs: unlike names would be near each other by their common end.
    lower = {each.lower().removesuffix(".yaml"): each for each in dict.fromkeys(names)}
    near = get_close_matches(name.lower().removesuffix(".yaml"), lower, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(lower[each]) for each in near)}?" if near else ""


CALLED_AS = "SAERL_PROGRAM"  # environment variable with the program that a user called, for processes that it starts


def program() -> str:
    """How this program was called, for commands that are printed: `saerl`, a script by this Python, or `-m`.

    In notebooks and scripts it is `saerl`, and not what they were started by. A run of a study prints what its user
    called, by the variable `CALLED_AS`, not how the study started it.
    """
    if said := os.environ.get(CALLED_AS):
        return said
    called = Path(sys.argv[0])
    if called.name == "saerl":
        return _called("saerl", called)
    if called.name not in ("main.py", "__main__.py"):
        return tool("saerl")
    module = "main.py" if called.name == "main.py" and called.parent == Path() else "-m saerl_lightning"
    return f"{_shown(Path(sys.executable))} {module}"


def tool(name: str) -> str:
    """How a program that was installed beside this Python is called, for commands that are printed.

    Args:
        name: Name of the program, such as `wandb`.
    """
    place = Path(sys.executable).parent / name
    return _called(name, place) if place.exists() else name


def _called(name: str, place: Path) -> str:
    """Name of a program where the PATH finds it at that place; else the place."""
    return name if shutil.which(name) == str(place) or place.parent == Path() else _shown(place)


def _shown(place: Path) -> str:
    """Path for a shell: relative to the current folder if it is below it."""
    below = place.is_absolute() and place.is_relative_to(Path.cwd())
    return shlex.quote(str(place.relative_to(Path.cwd()) if below else place))


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message without its full stop, or the error's class if the message is empty."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
