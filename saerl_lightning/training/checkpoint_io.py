"""Checkpoints that are whole or absent, whenever the process is killed.

Lightning writes to the system's temporary folder and moves the file; where that is another file system the move is a copy,
and a kill in its middle leaves a torn `last.ckpt` in place of the good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it into it, which a file system does at once or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves to `<path>.writing`, then renames. Remote paths are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        staged = Path(f"{path}.writing")
        super().save_checkpoint(checkpoint, staged, storage_options)
        staged.replace(path)
