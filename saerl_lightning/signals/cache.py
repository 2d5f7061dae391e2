"""Caches features on disk, so that each is computed once. An interrupted extraction continues where it stopped.

Processes that need the same features wait for each other, so that only one computes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.given import returned
from saerl_lightning.ranges import require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_prompts
from saerl_lightning.signals.random_signals import ShuffledSignals
from saerl_lightning.signals.source import Features, Part, SignalSource, features_by, parts_by, stacked

VERSION = 2  # version of the file format


class FeatureStore:
    """Feature rows of one source on disk, each under a key.

    Args:
        folder: Folder of this store alone.
        source: Fingerprint of the source. Shards written for another source are deleted.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.stamp = json.dumps({"version": VERSION, "source": source})

    def locked(self) -> AbstractContextManager[None]:
        """Locks these features for one process at a time. Other processes wait, and log for whom."""
        return lock.awaited(self.folder.with_suffix(".lock"), f"the features in {self.folder}")

    def holds(self, keys: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Returns which keys have a row in an intact shard. Damaged shards are deleted."""
        held = {key for found, _ in self._shards(set(keys)) for key in found}
        return np.array([key in held for key in keys], dtype=bool)

    def add(self, keys: Sequence[str], rows: Features) -> None:
        """Writes rows as a new shard, named after its checksum."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as temporary:
            file = _save(Path(temporary, "shard.npz"), self.stamp, keys, rows)
            file.replace(self.folder / f"{_checksum(file)}.npz")

    def rows(self, keys: Sequence[str]) -> Features:
        """Reads the rows of the given keys, in the given order.

        Raises:
            InputError: if a key has no row.
        """
        parts = [(list(found), rows) for found, rows in self._shards(set(keys))]
        store_and_keys = {key: row for row, key in enumerate(key for found, _ in parts for key in found)}
        if missing := [key for key in keys if key not in store_and_keys]:
            raise InputError(
                f"{self.folder} holds {len(keys) - len(missing)} of {len(keys)} prompts though all were computed; the source "
                f"left some out, or something else removed files there, or the disk is full: try again with an empty folder"
            )
        return stacked([rows for _, rows in parts])[np.array([store_and_keys[key] for key in keys])]

    def _shards(self, wanted: set[str]) -> Iterator[tuple[Sequence[str], Features]]:
        """Yields keys and rows of the intact shards that hold a wanted key."""
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
    """Reads a shard's keys and rows (empty if it holds no wanted key); returns None if the shard is damaged or outdated."""
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


log = logging.getLogger(__name__)

# A shard is written when either limit is reached: an interruption loses at most this much work.
SHARD_PROMPTS, SHARD_SECONDS = 256, 30.0


class CachedSignals(SignalSource):
    """Caches another source's features on disk.

    If the source is `by_row`, rows are stored per prompt: another pool, or the same pool after an interruption,
    computes only prompts that were never read. Otherwise rows depend on the whole pool and are stored for that pool.

    Args:
        inner: Signal source whose features are cached.
        folder: Folder of the cache, shared by any number of sources and pools.
    """

    def __init__(self, inner: SignalSource, folder: str = "runs/signals") -> None:
        # A cache inside a cache would wait for its own lock, so it is unwrapped.
        self.inner = inner.inner if isinstance(inner, CachedSignals) else inner
        self.folder = folder
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Reads the rows from disk, and computes and stores missing ones."""
        if not prompts:
            return features_by(self.inner, prompts)
        store, keys = self.store_and_keys(prompts)
        # Shards never change, so a process that only reads needs no lock.
        if not store.holds(keys).all():
            with store.locked():
                self._complete(store, keys, prompts)
        return store.rows(keys)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns the inner source's fingerprint, because the features are the same."""
        return self.inner.fingerprint(prompts)

    def store_and_keys(self, prompts: Sequence[Prompt]) -> tuple[FeatureStore, list[str]]:
        """Returns the store for some prompts, and each prompt's key in it."""
        source, keys = self._keys(prompts)
        return FeatureStore(Path(self.folder, digest([source])[:32]), source), keys

    def _keys(self, prompts: Sequence[Prompt]) -> tuple[str, list[str]]:
        """Returns the fingerprint to store rows under, and a key for each row."""
        by_row, said = self.inner.by_row, f"{type(self.inner).__name__}.fingerprint returned"
        keys = [digest_prompts([prompt]) if by_row else str(row) for row, prompt in enumerate(prompts)]
        return returned.text(said, self.inner.fingerprint([] if by_row else prompts)), keys

    def _complete(self, store: FeatureStore, keys: Sequence[str], prompts: Sequence[Prompt]) -> None:
        missing = np.flatnonzero(~store.holds(keys))
        if len(missing) < len(prompts):
            log.info("%d of %d prompts are in %s already", len(prompts) - len(missing), len(prompts), store.folder)
        if len(missing):
            for positions, rows in grouped(parts_by(self.inner, [prompts[i] for i in missing])):
                store.add([keys[int(i)] for i in missing[positions]], rows)


def grouped(parts: Iterator[Part], prompts: int = SHARD_PROMPTS, seconds: float = SHARD_SECONDS) -> Iterator[Part]:
    """Joins parts until they have a number of prompts, or took a number of seconds."""
    group: list[Part] = []
    began = time.monotonic()
    for part in parts:
        group.append(part)
        if sum(len(positions) for positions, _ in group) >= prompts or time.monotonic() - began >= seconds:
            yield _joined(group)
            group, began = [], time.monotonic()
    if group:
        yield _joined(group)


def _joined(group: Sequence[Part]) -> Part:
    return np.concatenate([positions for positions, _ in group]), stacked([rows for _, rows in group])


def cached(source: SignalSource, folder: str) -> SignalSource:
    """Returns a source whose features are cached on disk; of shuffled rows, those before the shuffle, for all its seeds.

    Args:
        source: Signal source whose features are cached.
        folder: Folder of the cache.
    """
    if isinstance(source, ShuffledSignals):
        return ShuffledSignals(cached(source.inner, folder), source.seed)
    return CachedSignals(source, folder)
