"""RaySignals: computes another source's rows in actors of a Ray cluster, for millions of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saerl_lightning.cluster.ray_actors import RayActors, Work
from saerl_lightning.errors import InputError
from saerl_lightning.progress import Bar
from saerl_lightning.ranges import Count, NotNegative, Workers, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import CachedSignals
from saerl_lightning.signals.source import Features, Part, SignalSource, in_order


class RaySignals(SignalSource):
    """Computes another source's features in actors of a Ray cluster, block by block.

    The cluster is the one that RAY_ADDRESS names, with a file system that all machines share; without RAY_ADDRESS, Ray
    is started on this machine. Each actor loads its own model, once. Needs the package `ray` (extra `[ray]`). Tried on
    one machine, without GPUs.

    Rows are cached under the inner source's fingerprint (`data.signal_cache`), so that a second call, with or without
    Ray, computes only prompts that were never read. A killed actor is replaced, and loses nothing.

    Args:
        inner: Signal source whose features are computed. A row must depend on its prompt alone.
        actors: Number of actors.
        cpus: Number of CPUs reserved for each actor.
        gpus: Number of GPUs reserved for each actor; a fraction shares one GPU.
        block: Number of prompts that an actor reads at a time.

    Raises:
        InputError: if a number is out of range, or the inner source's rows depend on the whole pool.
    """

    def __init__(
        self,
        inner: SignalSource,
        actors: Workers = 1,
        cpus: NotNegative = 1.0,
        gpus: NotNegative = 0.0,
        block: Count = 1024,
    ) -> None:
        # The cache belongs around the actors: inside, each would wait for the others' lock.
        self.inner = inner.inner if isinstance(inner, CachedSignals) else inner
        self.actors = actors
        self.cpus = cpus
        self.gpus = gpus
        self.block = block
        require_in_range(self)
        if not self.inner.by_row:
            raise InputError(
                f"RaySignals.inner is {type(self.inner).__name__}, whose rows (or with these settings) depend on the whole "
                "pool, so they can't be computed in blocks; use it without RaySignals, or without its `components`"
            )

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes the rows in the prompts' order."""
        return in_order(list(self.stream(prompts))) if prompts else self.inner.features(prompts)

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        """Yields the rows of each block as an actor has computed it."""
        blocks = [range(start, min(start + self.block, len(prompts))) for start in range(0, len(prompts), self.block)]
        actors = RayActors(min(self.actors, max(1, len(blocks))), self.cpus, self.gpus)
        work = ([prompts[row] for row in block] for block in blocks)
        with Bar(total=len(prompts), unit="prompt", desc="signals over Ray") as bar:
            for number, rows in actors.map(BlockReading(self.inner), work, "RaySignals.actors"):
                bar.update(len(blocks[number]))
                yield np.array(blocks[number]), rows

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns the inner source's fingerprint, because the features are the same."""
        return self.inner.fingerprint(prompts)

    @property
    def by_row(self) -> bool:
        """True, because other sources are refused."""
        return True


@dataclass(frozen=True)
class BlockReading:
    """Makes, in an actor, the function that computes the rows of a block in the block's order."""

    inner: SignalSource

    def __call__(self) -> Work:
        """Loads what the source needs."""
        read = self.inner.reader()
        return lambda prompts: in_order(list(read(prompts)))
