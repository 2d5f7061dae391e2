"""Clusters without a model: the data's own topics, and random groups as their null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Clustering
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class TopicClusters(Clustering):
    """One cluster a topic, in alphabetical order; prompts without a topic are the last cluster."""

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Numbers the topics.

        Raises:
            InputError: if no prompt has a topic.
        """
        topics = sorted({prompt.topic for prompt in prompts if prompt.topic is not None})
        if not topics:
            raise InputError("TopicClusters found no prompt with a topic; name its column, or cluster by another class")
        number = {topic: i for i, topic in enumerate(topics)}
        return np.array([len(topics) if p.topic is None else number[p.topic] for p in prompts], dtype=np.int64)


class RandomClusters(Clustering):
    """Random clusters of equal size (to one prompt).

    Args:
        clusters: how many.
        seed: of the draw.

    Raises:
        InputError: if `clusters` is below 1.
    """

    def __init__(self, clusters: int = 16, seed: int = 0) -> None:
        if clusters < 1:
            raise InputError(f"RandomClusters.clusters is {clusters}; write 1 or more")
        self.clusters = clusters
        self.seed = seed

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Deals the pool into clusters."""
        return np.random.default_rng(self.seed).permutation(len(prompts)) % self.clusters
