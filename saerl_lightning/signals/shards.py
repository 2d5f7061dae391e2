"""Feature rows as files, found again by key: shards that are written as parts come, and never changed.

A shard is named by its checksum and carries the stamp of what it belongs to; one that doesn't match both is as good as
absent. Nothing here knows how features are computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array, vstack

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.signals.source import Features

log = logging.getLogger(__name__)

VERSION = 2  # of the files' layout


class FeatureStore:
    """The rows of one source, each under a key.

    Args:
        folder: its own.
        source: names the source; shards of another one are not trusted.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.stamp = json.dumps({"version": VERSION, "source": source})

    def alone(self) -> AbstractContextManager[None]:
        """Lets one process at a time work on these features; the others wait for it, and say for whom."""
        return lock.awaited(self.folder.with_suffix(".lock"), f"the features in {self.folder}")

    def holds(self, keys: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Says which keys have a row in a whole shard; shards that can't be trusted are removed."""
        held = {key for found, _ in self._shards(set(keys)) for key in found}
        return np.array([key in held for key in keys], dtype=bool)

    def add(self, keys: Sequence[str], rows: Features) -> None:
        """Writes a shard, named after its checksum."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as temporary:
            file = _save(Path(temporary, "shard.npz"), self.stamp, keys, rows)
            file.replace(self.folder / f"{_checksum(file)}.npz")

    def rows(self, keys: Sequence[str]) -> Features:
        """Reads the rows of keys, in the keys' order.

        Raises:
            InputError: if a key has no row.
        """
        parts = [(list(found), rows) for found, rows in self._shards(set(keys))]
        place = {key: row for row, key in enumerate(key for found, _ in parts for key in found)}
        if missing := [key for key in keys if key not in place]:
            raise InputError(
                f"{self.folder} holds {len(keys) - len(missing)} of {len(keys)} prompts though all were computed; the source "
                f"left some out, or something else removed files there, or the disk is full: try again with an empty folder"
            )
        return stacked([rows for _, rows in parts])[np.array([place[key] for key in keys])]

    def _shards(self, wanted: set[str]) -> Iterator[tuple[Sequence[str], Features]]:
        """Keys and rows of the whole shards that hold a wanted key."""
        for file in sorted(self.folder.glob("*.npz")):
            shard = _load(file, self.stamp, wanted)
            if shard is None:
                log.warning("%s is damaged or of another version: its prompts are computed again", file)
                file.unlink()
            elif shard[0]:
                yield shard


def _save(file: Path, stamp: str, keys: Sequence[str], rows: Features) -> Path:
    if isinstance(rows, np.ndarray):
        arrays: dict[str, Any] = {"dense": rows}
    else:
        shape = np.array(rows.shape, dtype=np.int64)
        arrays = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "shape": shape}
    np.savez(file, stamp=np.array(stamp), keys=np.array(keys, dtype=str), **arrays)
    return file


def _load(file: Path, stamp: str, wanted: set[str]) -> tuple[Sequence[str], Features] | None:
    """A shard's keys and rows, none where it holds no wanted key; None if it can't be trusted."""
    if _checksum(file) != file.stem:
        return None
    with np.load(file, allow_pickle=False) as held:
        if str(held["stamp"]) != stamp:
            return None
        keys = held["keys"].tolist()
        if wanted.isdisjoint(keys):
            return [], np.empty((0, 0))
        if "dense" in held:
            return keys, held["dense"]
        return keys, csr_array((held["data"], held["indices"], held["indptr"]), shape=tuple(held["shape"]))


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def stacked(rows: Sequence[Features]) -> Features:
    """Rows of several parts below each other; all of them dense, or all sparse."""
    dense = [part for part in rows if isinstance(part, np.ndarray)]
    if dense:
        return np.concatenate(dense)
    return csr_array(vstack(rows, format="csr"))
