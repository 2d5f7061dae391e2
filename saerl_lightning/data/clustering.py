"""Which prompts are alike: clusters of feature rows by direction. Its nulls are in `clustering_controls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Clustering
from saerl_lightning.data.kmeans import largest_first, nearest, reduced_units, spherical_kmeans
from saerl_lightning.data.labels import bin_by, require_features, require_label
from saerl_lightning.data.ordering import permute_within
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Count, CountFrom0, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class KMeansClusters(Clustering):
    """Clusters prompts by spherical k-means of their feature rows, numbered by size, the largest first.

    The centres are found on the planned prompts; every prompt of the pool gets the label of the nearest.

    Source: clusters in SAE space are SAERL's (arXiv 2605.27354); spherical k-means and its settings are ours.

    Args:
        clusters: how many (K).
        components: reduce the unit rows to so many columns by truncated SVD first; null, or as many columns as there are,
            leaves them. Real topics were found as well with 128 as with all columns, in a third of the time; planted
            groups need as many components as there are groups, and half as many lose them.
        seed: of the SVD and of the starting points.
        minibatch_above: start from mini-batch k-means where more prompts than this are planned.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self, clusters: Count = 16, components: Count | None = 128, seed: Seed = 0, minibatch_above: CountFrom0 = 50_000
    ) -> None:
        self.clusters = clusters
        self.components = components
        self.seed = seed
        self.minibatch_above = minibatch_above
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """Clusters are made of feature rows."""
        return True

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Gives every prompt its nearest centre; one whose row is all zeros is as near to every centre, and gets one.

        Raises:
            InputError: if there are fewer planned prompts than clusters, or a feature row is not finite.
        """
        count = len(plan.rows)
        if self.clusters > count:
            raise InputError(
                f"KMeansClusters.clusters is {self.clusters}, but {count} prompts are planned; write fewer"
            )
        rows = require_features(type(self).__name__, prompts, features)
        members = np.sort(plan.rows)  # the same clusters in whatever order the prompts are served
        units = reduced_units(rows, members, self.components, self.seed)
        centres = spherical_kmeans(units[members], self.clusters, self.seed, count > self.minibatch_above)
        return largest_first(nearest(units, centres), members, self.clusters)


class TopicClusters(Clustering):
    """One cluster a topic, in alphabetical order; prompts without a topic are the last cluster."""

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts none of which has a topic."""
        if all(prompt.topic is None for prompt in prompts):
            raise InputError("TopicClusters found no prompt with a topic; name its column, or cluster by another class")

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Numbers the topics.

        Raises:
            InputError: if no prompt has a topic.
        """
        self.check(prompts, plan.rows)
        topics = sorted({prompt.topic for prompt in prompts if prompt.topic is not None})
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

    def __init__(self, clusters: Count = 16, seed: Seed = 0) -> None:
        self.clusters = clusters
        self.seed = seed
        require_in_range(self)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Deals the pool into clusters."""
        return np.random.default_rng(self.seed).permutation(len(prompts)) % self.clusters


class SameSizeClusters(Clustering):
    """Random clusters, each as large as one of another clustering.

    What is left of the other's effect comes from the sizes of its clusters, not from who is in them.

    Args:
        inner: the clustering whose sizes, among the planned prompts, are kept.
        seed: of the draw.
    """

    def __init__(self, inner: Clustering, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """As the inner clustering."""
        return self.inner.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner clustering refuses."""
        self.inner.check(prompts, planned)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Deals the inner clustering's labels anew among the planned prompts."""
        labels = self.inner.label(plan, prompts, features)
        return permute_within(labels, np.zeros_like(labels), plan.rows, self.seed)


class PermutedClusters(Clustering):
    """Another clustering's members, exchanged at random among prompts of like difficulty.

    Each cluster keeps its size and its profile of difficulties, and loses its content.

    Args:
        inner: the clustering whose members are exchanged.
        label: a label of the data or of the labels file that says how hard a prompt is; every planned prompt must have it.
        bins: quantile bins of the label; prompts of one bin are of like difficulty.
        seed: of the exchange.

    Raises:
        InputError: if `bins` is below 1.
    """

    def __init__(self, inner: Clustering, label: str = "difficulty", bins: Count = 10, seed: Seed = 0) -> None:
        self.inner = inner
        self.by = label
        self.bins = bins
        self.seed = seed
        require_in_range(self)

    @property
    def needs_features(self) -> bool:
        """As the inner clustering."""
        return self.inner.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner clustering refuses, and planned prompts without the label."""
        self.inner.check(prompts, planned)
        require_label(type(self).__name__, self.by, prompts, planned)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Deals the inner clustering's labels anew inside each bin.

        Raises:
            InputError: if a planned prompt lacks the label.
        """
        bins = bin_by(require_label(type(self).__name__, self.by, prompts, plan.rows), plan.rows, self.bins)
        return permute_within(self.inner.label(plan, prompts, features), bins, plan.rows, self.seed)
