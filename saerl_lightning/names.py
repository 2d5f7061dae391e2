"""Names: those that become folders, files or parts of a metric's name, and those that were nearly right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from saerl_lightning.errors import InputError

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
