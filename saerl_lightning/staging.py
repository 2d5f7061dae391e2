"""Folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saerl_lightning.errors import InputError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a folder to write into; it becomes `target` when the block ends well and vanishes when it does not.

    Args:
        target: where the folder goes; it may exist only if it is empty.

    Raises:
        InputError: if `target` holds something already.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty; write another folder, or remove this one first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        staged = Path(temporary) / target.name
        staged.mkdir()
        yield staged
        staged.rename(target)
