"""Checkpoints that are whole or absent, whenever the process is killed, and whose damage is noticed.

Lightning builds the file in memory, writes it to the system's temporary folder and moves it; where that is another file
system the move is a copy, and a kill in its middle leaves a torn `last.ckpt` in place of the good one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from saerl_lightning.policy.checkpoint import digests_file, known_digests, require_undamaged
from saerl_lightning.staging import whole_file, write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it into it, which a file system does at once or not at all.

    Beside it stands its digest, and those of the files before: a kill just before the renaming leaves one of them.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves the file and its digest. Remote paths are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for torn in target.parent.glob(f".{target.name}.*.writing"):  # of a killed process, as large as a checkpoint
            torn.unlink(missing_ok=True)
        before = known_digests(target)[:3]
        with whole_file(target) as staged:
            with staged.open("wb") as file:
                digest = _write(checkpoint, file)
            write_whole(digests_file(target), "\n".join([digest, *before]) + "\n")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file whose bytes are those that were written.

        Raises:
            InputError: if they are not.
        """
        if "://" not in str(path):
            require_undamaged(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes the file and its digest."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            digests_file(Path(path)).unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> str:
    """Writes a checkpoint and returns its digest.

    Raises:
        OSError: if the disk is full; torch says only that the file has another length than it thought.
    """
    sink = _Sink(file)
    try:
        torch.save(checkpoint, sink)  # pyright: ignore[reportArgumentType]
    except RuntimeError:
        if sink.failure is not None:
            raise sink.failure from None
        raise
    return sink.digest.hexdigest()


class _Sink:
    """A file that digests what is written and remembers why it could not be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        """Writes all of it."""
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Hands on what is buffered."""
        self.file.flush()
