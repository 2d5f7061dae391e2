"""Shipped configs: their folder, their descriptions, and the look-up of names such as `-c grpo.yaml`.

In a checkout, they are in the folder `configs` beside the package; in an installed package, inside it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from saerl_lightning.errors import InputError, did_you_mean, program
from saerl_lightning.files import read_text

BASELINE = "grpo.yaml"
FLAGS = ("-c", "--config")
SENTENCE = re.compile(r".*?(?<!\bDr)\.(?= )|.*")


def folder() -> Path:
    """Returns the folder of the shipped configs."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Returns the names of all shipped configs, such as `model/smollm2_135m.yaml`: the baseline, then the top folder's."""
    found = [path.relative_to(folder()).as_posix() for path in folder().rglob("*.yaml")]
    return sorted(found, key=lambda name: (name != BASELINE, "/" in name, name))


def comment(name: str) -> str:
    """Returns the first sentence of a shipped config's opening comment, which describes it."""
    text = read_text(folder() / name, "the config")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    said = " ".join(lines)
    return SENTENCE.match(said)[0]  # pyright: ignore[reportOptionalSubscript]  # it matches any text


def find(given: str) -> str:
    """Returns the path of a config: the local file if it exists, or else the shipped config of that name.

    If both exist and differ, the local file is used, and a line on stderr reports it.

    Args:
        given: Path of a file, or name of a shipped config, with or without `configs/` before it.

    Returns:
        The path; `given` itself if no shipped config has that name.
    """
    here, shipped = Path(given), _shipped(given)
    if shipped is None:
        return given
    if not here.is_file():
        return given if here.exists() else str(shipped)
    if not here.samefile(shipped) and "LOCAL_RANK" not in os.environ:  # other ranks need not repeat it
        print(f"'{given}' is taken from here ({here.resolve()}), not from the shipped configs", file=sys.stderr)
    return given


def at_their_places(words: Sequence[str]) -> list[str]:
    """Replaces the names after `-c` in a command line by the paths of their files.

    Raises:
        InputError: if a name looks like a shipped config's but does not exist.
    """
    placed = list(words)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in FLAGS and equals:
            placed[index] = f"{flag}={_found(value)}"
        elif index and words[index - 1] in FLAGS:
            placed[index] = _found(word)
    return placed


def _shipped(given: str) -> Path | None:
    name = Path(given)
    if name.is_absolute() or ".." in name.parts or name.suffix != ".yaml":
        return None
    inside = name.relative_to("configs") if name.parts[0] == "configs" else name
    file = folder() / inside
    return file if file.is_file() else None


def _found(given: str) -> str:
    found = find(given)
    name = Path(given)
    if found == given and name.suffix in (".yaml", ".yml") and not name.is_absolute() and not name.exists():
        known = names()
        hint = did_you_mean(given.removeprefix("configs/"), known)
        raise InputError(
            f"there is no config '{given}' here ({Path.cwd()}), and none is shipped under that name{hint}"
            f"{'' if hint else f'; {program()} configs lists those that are'}"
        )
    return found
