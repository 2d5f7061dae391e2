"""`saerl configs`: the shipped configs, and what each is for."""

from __future__ import annotations

import shutil
import textwrap

from saerl_lightning import shipped
from saerl_lightning.errors import InputError, did_you_mean, program
from saerl_lightning.files import read_text


def configs(name: str | None = None) -> None:
    """Lists the shipped configs with their first comments, or prints one of them.

    Args:
        name: Config to print; None lists all.

    Raises:
        InputError: if there is no such config.
    """
    names = shipped.names()
    if name is None:
        print(listing(names, shutil.get_terminal_size((100, 24)).columns))
        return
    plain = name.removeprefix("configs/")
    if plain not in names:
        hint = did_you_mean(plain, names)
        raise InputError(f"no config '{name}' is shipped{hint or f'; {program()} configs lists those that are'}")
    print(read_text(shipped.folder() / plain, "the config"), end="")


def listing(names: list[str], width: int) -> str:
    """One paragraph a config: its name as `-c` takes it, and the first sentence of its comment.

    Args:
        names: Names of shipped configs.
        width: Columns of the page.
    """
    indent = max(map(len, names)) + 2
    lines = [
        textwrap.fill(
            f"{name:<{indent}}{shipped.comment(name)}", max(width, indent + 30), subsequent_indent=" " * indent
        )
        for name in names
    ]
    return "\n".join([*lines, "", "-c NAME takes one, from any folder; configs NAME prints it"])
