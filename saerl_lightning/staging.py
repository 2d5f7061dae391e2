"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saerl_lightning.errors import InputError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yields a path to write a file to; it replaces `target` at once when the block ends well, and is removed otherwise.

    Args:
        target: where the file goes.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}.writing")
    try:
        yield staged
        with staged.open("rb") as file:
            os.fsync(file.fileno())  # a machine that fails right after the rename must not find an empty file
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def write_whole(target: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one; makes its folder if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as staged:
        staged.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a folder to write into; it becomes `target` when the block ends well and vanishes when it does not.

    Args:
        target: where the folder goes.
        replace: put it in place of a folder that is there; otherwise one that is there must be empty.

    Raises:
        InputError: if `target` is a file, or holds something that is not to be replaced.
    """
    taken = target.is_dir() and any(target.iterdir())
    if target.is_file() or (taken and not replace):
        raise InputError(f"{target} exists and is not empty; write another folder, or remove this one first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}-", ignore_cleanup_errors=True
    ) as temporary:
        staged, older = Path(temporary, target.name), Path(temporary, "older")
        staged.mkdir()
        yield staged
        if taken:
            target.rename(older)
        try:
            staged.rename(target)
        except OSError:
            if older.exists():
                shutil.move(older, target)
            raise


def disk_is_full(error: BaseException) -> bool:
    """Whether what was written did not fit."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
