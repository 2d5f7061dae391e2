"""Harvests residual-stream activations of token lists into memory, one row per position.

The order of rows depends on the token lists alone, so that harvesting the same block twice gives the same rows. Shared
prefixes are computed once, and appear in the block as often as in the text. n positions, d the width of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning import lock
from saerl_lightning.files import whole_file
from saerl_lightning.progress import Bar
from saerl_lightning.signals.fingerprint import digest_model
from saerl_lightning.signals.model import ReadModel, pooled_positions
from saerl_lightning.signals.prefix_tree import Tokens, by_prefix, common_prefix
from saerl_lightning.signals.reading import Forward, suited_forward

FORMAT = "1"  # raise it when the content of a file changes its meaning


class BlockCache:
    """Stores blocks of activations in a folder, one safetensors file per block, named by a fingerprint of its inputs.

    Args:
        folder: Folder of the cache, made when the first block is written.
        model: Model and layer whose activations are stored.
        limit_gb: Largest size of the folder in GB; None for no limit.
    """

    def __init__(self, folder: str, model: ReadModel, limit_gb: float | None = None) -> None:
        self.folder = Path(folder)
        self.model = model
        self.limit_gb = limit_gb
        self._used: set[Path] = set()  # by this run

    def read(self, ids: Sequence[Sequence[int]], shape: tuple[int, int]) -> Float[Tensor, "n d"] | None:
        """Reads a block.

        Args:
            ids: Token lists that the block was harvested from.
            shape: Expected shape of the block, (n, d).

        Returns:
            The block, or None if the file is missing, damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        fingerprint = self.fingerprint(ids)
        try:
            with safe_open(self._path(fingerprint), framework="pt") as file:
                if (file.metadata() or {}) != _header(fingerprint):
                    return None
                block = file.get_tensor("activations")
            self._used.add(self._path(fingerprint))
        except (OSError, SafetensorError):
            return None
        return block if tuple(block.shape) == shape and block.dtype == getattr(torch, self.model.dtype) else None

    def write(self, ids: Sequence[Sequence[int]], block: Float[Tensor, "n d"]) -> None:
        """Writes a block to the cache, atomically, if there is room."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        fingerprint = self.fingerprint(ids)
        path = self._path(fingerprint)
        if not self._has_room(block.nbytes):
            return
        self._used.add(path)
        with whole_file(path) as staged:
            save_file({"activations": block.contiguous()}, staged, metadata=_header(fingerprint))

    def _has_room(self, size: int) -> bool:
        """Deletes blocks that this run has not used, oldest first, until `size` bytes fit; returns whether they do.

        Blocks of this run stay: each epoch reads all of them in turn, and would find none if the newest replaced the oldest.
        """
        if self.limit_gb is None:
            return True
        held = sorted((each.stat().st_mtime, each.stat().st_size, each) for each in self.folder.glob("*.safetensors"))
        over = sum(bytes_ for _, bytes_, _ in held) + size - int(self.limit_gb * 1e9)
        others = [(bytes_, path) for _, bytes_, path in held if path not in self._used]
        if over > sum(bytes_ for bytes_, _ in others):
            return False
        for bytes_, path in others:
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= bytes_
        return True

    def locked(self, ids: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """Locks a block, so that one process harvests it. Other processes wait, log for whom, and then read the result."""
        return lock.awaited(self._path(self.fingerprint(ids)).with_suffix(".lock"), f"a block in {self.folder}")

    def fingerprint(self, ids: Sequence[Sequence[int]]) -> str:
        """Returns a digest of the model's files, the layer, the dtype and the tokens."""
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


class TokenRows(NamedTuple):
    """Right-padded token lists. A named tuple, because Lightning can move it to a device."""

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]  # true for real tokens
    fresh: Bool[Tensor, "B T"]  # true for harvested positions whose whole prefix occurs in no earlier row

    @classmethod
    def pad(cls, rows: Sequence[Tokens], shared: Sequence[int]) -> TokenRows:
        """Pads token lists. The first `shared` tokens of each list occur in another row too."""
        width = max(len(row) for row in rows)
        lengths, known = torch.tensor([[len(row)] for row in rows]), torch.tensor(shared)[:, None]
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.arange(width) < lengths  # (B, T)
        return cls(tokens, mask, pooled_positions(mask) & (torch.arange(width) >= known))


class TextLoader:
    """Serves token rows batch by batch. A class, because Lightning would take a list for several loaders."""

    def __init__(self, batches: Sequence[TokenRows]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[TokenRows]:
        """Iterates over the batches, always in the same order."""
        return iter(self.batches)


class Harvester:
    """Computes the activations of a model at its layer. The model is loaded when it is first needed.

    Args:
        model: Model and layer whose activations are harvested.
        max_tokens: Length of the longest token list.
        token_budget: Number of tokens per forward pass.
        cache: Folder where harvested blocks are kept; null keeps none.
        cache_gb: Largest size of that folder in GB; null for no limit.
    """

    def __init__(
        self,
        model: ReadModel,
        max_tokens: int,
        token_budget: int = 1024,
        cache: str | None = None,
        cache_gb: float | None = None,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.token_budget = token_budget
        self.cache = BlockCache(cache, model, cache_gb) if cache is not None else None
        self._forward: Forward | None = None

    def block(self, ids: Sequence[Tokens], show: bool = False) -> Float[Tensor, "n d"]:
        """Harvests all positions but the first of each list, or reads them from the cache.

        Args:
            ids: Token lists to harvest.
            show: Whether to draw a progress bar.
        """
        if self.cache is None:
            return self._harvest(ids, [1] * len(ids), show)
        shape = positions(ids), self.model.config()[2]
        if (found := self.cache.read(ids, shape)) is not None:
            return found
        # Read again under the lock: another process may have written the block meanwhile.
        with self.cache.locked(ids):
            if (found := self.cache.read(ids, shape)) is None:
                found = self._harvest(ids, [1] * len(ids), show)
                self.cache.write(ids, found)
            return found

    def distinct(self, ids: Sequence[Tokens], shared: Sequence[int]) -> Float[Tensor, "n d"]:
        """Harvests only the positions after the shared prefix of each list, and never the first position.

        Args:
            ids: Token lists to harvest.
            shared: Number of tokens to leave out at the start of each list.
        """
        return self._harvest(ids, [max(1, count) for count in shared], show=False)

    def _harvest(self, ids: Sequence[Tokens], skipped: Sequence[int], show: bool) -> Float[Tensor, "n d"]:
        """Harvests every list from behind its skipped tokens."""
        forward = self._forward or suited_forward(self.model.load()[0], self.max_tokens)
        self._forward, decoder = forward, forward.decoder
        count = sum(max(0, len(row) - skip) for row, skip in zip(ids, skipped, strict=True))
        block, filled = torch.empty(count, decoder.config.hidden_size, dtype=decoder.dtype), 0
        with Bar(desc="harvesting", total=sum(map(len, ids)), unit="token", disable=not show) as bar:
            for rows in forward.batches(ids, self.token_budget):
                reading = forward([ids[row] for row in rows])
                # The first position is always skipped, because it is an attention sink.
                kept = np.concatenate([path[skipped[row] :] for row, path in zip(rows, reading.paths, strict=True)])
                block[filled : filled + len(kept)] = reading.hidden[torch.from_numpy(kept)].cpu()
                filled += len(kept)
                bar.update(sum(len(ids[row]) for row in rows))
        return block

    def release(self) -> None:
        """Frees the model's memory."""
        self._forward = None


def positions(ids: Sequence[Tokens]) -> int:
    """Counts the positions that are harvested from token lists: all but the first of each."""
    return sum(max(0, len(row) - 1) for row in ids)


def by_length(ids: Sequence[Tokens], token_budget: int) -> Iterator[list[int]]:
    """Groups lists of similar length, so that each group fits the budget after padding.

    Args:
        ids: Token lists, none of them empty.
        token_budget: Maximum of rows times longest row. A longer list gets a group of its own.

    Yields:
        Positions in `ids`, each exactly once over all groups, shortest first.
    """
    group: list[int] = []
    for index in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if group and (len(group) + 1) * len(ids[index]) > token_budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def shared_prefixes(ids: Sequence[Tokens]) -> list[int]:
    """Counts the tokens at the start of each list whose activations also occur in another list (equal prefixes).

    Of the lists that share a prefix, one does not count it, so that each distinct prefix is harvested exactly once.
    """
    shared, order = [0] * len(ids), by_prefix(ids)
    for before, index in pairwise(order):
        shared[index] = common_prefix(ids[before], ids[index])
    return shared
