"""Names that become folders, files or parts of a metric's name."""

from __future__ import annotations

import re

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
            f"{what} {name[:120]!r}: the name becomes part of a path; write 1 to 100 letters, digits, '_', '-' or '.', the "
            "first a letter or a digit"
        )
