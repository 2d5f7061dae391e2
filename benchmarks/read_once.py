"""Several signals from one pass over the text: the model is run once, and each signal makes its rows of what it reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import CachedSignals, stacked
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import encode
from saerl_lightning.signals.reading import pooled_parts, suited_forward
from saerl_lightning.signals.sae import CodeSignals
from saerl_lightning.signals.source import Features

SHARD_SECONDS = 30.0  # what a kill costs


def read_once(sources: Sequence[CachedSignals], prompts: Sequence[Prompt]) -> None:
    """Fills the caches of signals that read one model at one layer; prompts that all of them hold are not read."""
    makers = [source.inner for source in sources if isinstance(source.inner, HiddenSignals | CodeSignals)]
    assert len(makers) == len(sources) and len({maker.model for maker in makers}) <= 1
    if not makers:
        return
    places = [source.store_and_keys(prompts) for source in sources]
    missing = np.flatnonzero(~np.all([store.holds(keys) for store, keys in places], axis=0))
    if not len(missing):
        return
    for positions, rows in _groups(makers, [prompts[i] for i in missing]):
        for (store, keys), part in zip(places, rows, strict=True):
            store.add([keys[i] for i in missing[positions]], part)


def _groups(
    makers: Sequence[HiddenSignals | CodeSignals], prompts: Sequence[Prompt]
) -> Iterator[tuple[np.ndarray, list[Features]]]:
    """Positions and every maker's rows of them, half a minute's work at a time."""
    first, pools = makers[0], [maker.pool() for maker in makers]
    decoder, tokenizer = first.model.load()
    ids = encode(prompts, tokenizer, first.max_tokens)
    forward = suited_forward(decoder, first.max_tokens)
    read: list[tuple[np.ndarray, list[Features]]] = []
    began = time.monotonic()
    made: list[list[Features]] = []

    def pool(reading: object) -> Features:
        made.append([each(reading) for each in pools])  # pyright: ignore[reportArgumentType]
        return made[-1][0]

    for positions, _ in pooled_parts(forward, ids, pool, first.token_budget):
        read.append((positions, made.pop()))
        if time.monotonic() - began > SHARD_SECONDS:
            yield _joined(read)
            read, began = [], time.monotonic()
    if read:
        yield _joined(read)


def _joined(read: Sequence[tuple[np.ndarray, list[Features]]]) -> tuple[np.ndarray, list[Features]]:
    rows = [stacked(parts) for parts in zip(*(rows for _, rows in read), strict=True)]
    return np.concatenate([positions for positions, _ in read]), rows
