"""Features on disk: computed once, read back bit for bit, and a killed extraction goes on where it was.

Processes that want the same features at once take turns, so that the work is done by one of them.
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
from jaxtyping import Bool, Int
from scipy.sparse import csr_array, vstack

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_prompts
from saerl_lightning.signals.source import Features, SignalSource

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


log = logging.getLogger(__name__)

Part = tuple[Int[np.ndarray, " n"], Features]  # positions of prompts, and their rows

SHARD_PROMPTS, SHARD_SECONDS = 256, 30.0  # a shard is written when either is reached; a kill costs no more


class CachedSignals(SignalSource):
    """Keeps another source's features on disk.

    Rows of a source that is `by_row` are kept prompt by prompt: another pool, or the same one after a kill, asks only for
    prompts that were never read. Rows of other sources depend on the whole pool and are kept with it.

    Args:
        inner: what computes the features.
        folder: where they are kept, for any number of sources and pools.
    """

    def __init__(self, inner: SignalSource, folder: str = "runs/signals") -> None:
        # A cache of a cache is one cache; two would wait for each other.
        self.inner = inner.inner if isinstance(inner, CachedSignals) else inner
        self.folder = folder

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Reads the rows back, or computes what is missing and keeps it."""
        if not prompts:
            return self.inner.features(prompts)
        store, keys = self.place(prompts)
        if not store.holds(keys).all():  # who only reads waits for nobody: shards never change
            with store.alone():
                self._complete(store, keys, prompts)
        return store.rows(keys)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Is the inner source's: the features are the same."""
        return self.inner.fingerprint(prompts)

    def place(self, prompts: Sequence[Prompt]) -> tuple[FeatureStore, list[str]]:
        """Where the rows of prompts are kept, and under which key each."""
        source, keys = self._keys(prompts)
        return FeatureStore(Path(self.folder, digest([source])[:32]), source), keys

    def _keys(self, prompts: Sequence[Prompt]) -> tuple[str, list[str]]:
        """The name that rows are kept under, and a key for each of them."""
        if self.inner.by_row:
            return self.inner.fingerprint([]), [digest_prompts([prompt]) for prompt in prompts]
        return self.inner.fingerprint(prompts), [str(row) for row in range(len(prompts))]

    def _complete(self, store: FeatureStore, keys: Sequence[str], prompts: Sequence[Prompt]) -> None:
        missing = np.flatnonzero(~store.holds(keys))
        if len(missing) < len(prompts):
            log.info("%d of %d prompts are in %s already", len(prompts) - len(missing), len(prompts), store.folder)
        if len(missing):
            for positions, rows in grouped(self.inner.stream([prompts[i] for i in missing])):
                store.add([keys[int(i)] for i in missing[positions]], rows)


def grouped(parts: Iterator[Part], prompts: int = SHARD_PROMPTS, seconds: float = SHARD_SECONDS) -> Iterator[Part]:
    """Joins parts until they hold some prompts, or have taken some seconds."""
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
