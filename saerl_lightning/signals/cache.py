"""Features on disk: computed once, read back bit for bit, and a killed extraction goes on where it was.

Processes that want the same features at once take turns, so that the work is done by one of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_prompts
from saerl_lightning.signals.shards import FeatureStore, stacked
from saerl_lightning.signals.source import Features, SignalSource

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
