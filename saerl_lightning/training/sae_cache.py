"""Harvested blocks on disk, so that a second SAE over the same text harvests nothing.

A file is trusted only if it is whole, of this version, and of the same model, layer and tokens; else it is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning import lock
from saerl_lightning.signals.fingerprint import digest_model
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.staging import whole_file

FORMAT = "1"  # raise it when the meaning of a file changes


class BlockCache:
    """A folder of blocks, one safetensors file each, named by a fingerprint of all that they depend on.

    Args:
        folder: made when the first block is written.
        model: that is harvested.
    """

    def __init__(self, folder: str, model: ReadModel) -> None:
        self.folder = Path(folder)
        self.model = model

    def read(self, ids: Sequence[Sequence[int]], shape: tuple[int, int]) -> Float[Tensor, "n d"] | None:
        """Finds a block.

        Args:
            ids: the token lists that it was harvested from.
            shape: that it must have, (n, d).

        Returns:
            The block, or None where there is none that can be trusted.
        """
        from safetensors import SafetensorError, safe_open

        fingerprint = self.fingerprint(ids)
        try:
            with safe_open(self._path(fingerprint), framework="pt") as file:
                if (file.metadata() or {}) != _header(fingerprint):
                    return None
                block = file.get_tensor("activations")
        except (OSError, SafetensorError):
            return None
        return block if tuple(block.shape) == shape and block.dtype == getattr(torch, self.model.dtype) else None

    def write(self, ids: Sequence[Sequence[int]], block: Float[Tensor, "n d"]) -> None:
        """Keeps a block; the file is whole or absent."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        fingerprint = self.fingerprint(ids)
        path = self._path(fingerprint)
        with whole_file(path) as staged:
            save_file({"activations": block.contiguous()}, staged, metadata=_header(fingerprint))

    def alone(self, ids: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """Lets one process at a time harvest a block: others wait for it, say for whom, and then read what it wrote."""
        return lock.awaited(self._path(self.fingerprint(ids)).with_suffix(".lock"), f"a block in {self.folder}")

    def fingerprint(self, ids: Sequence[Sequence[int]]) -> str:
        """Names a block by the model's files, the layer, the dtype, and the tokens."""
        digest = hashlib.sha256((FORMAT + self._read_model).encode())
        for row in ids:
            digest.update(np.array([len(row), *row], dtype="<i8").tobytes())
        return digest.hexdigest()[:32]

    @cached_property
    def _read_model(self) -> str:
        return digest_model(self.model)

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.safetensors"


def _header(fingerprint: str) -> dict[str, str]:
    return {"format": FORMAT, "fingerprint": fingerprint}
