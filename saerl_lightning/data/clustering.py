"""Clustering: k-means of feature rows by direction, its controls (topics, random, same sizes, permuted), BalancedServing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Clustering, Control, DataCallback, clusters_by
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
    """Clusters prompts by spherical k-means of their feature rows. Cluster 0 is the largest.

    The centres are fitted to the planned prompts. Every prompt of the pool is assigned to its nearest centre.

    Source: clusters in SAE space are SAERL's (arXiv 2605.27354); spherical k-means and its settings are ours.

    Args:
        clusters: Number of clusters (K).
        components: Number of columns after reduction of the unit rows by truncated SVD; null does not reduce. With 128,
            real topics are found as well as with all columns, in a third of the time. Use at least as many components
            as expected groups.
        seed: Seed of the SVD and of the starting points.
        minibatch_above: Number of planned prompts above which mini-batch k-means finds the starting points.

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
        """True, because clusters are made from feature rows."""
        return True

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Assigns every prompt to its nearest centre. A row of zeros is equally near to all centres and gets the first.

        Raises:
            InputError: if fewer prompts than clusters are planned, or a feature row is not finite.
        """
        count = len(plan.rows)
        if self.clusters > count:
            raise InputError(
                f"KMeansClusters.clusters is {self.clusters}, but {count} prompts are planned; write fewer"
            )
        rows = require_features(type(self).__name__, prompts, features)
        # Sorted, so that the clusters don't depend on the order in which prompts are served.
        members = np.sort(plan.rows)
        units = reduced_units(rows, members, self.components, self.seed)
        centres = spherical_kmeans(units[members], self.clusters, self.seed, count > self.minibatch_above)
        return largest_first(nearest(units, centres), members, self.clusters)


class TopicClusters(Clustering):
    """One cluster per topic, in alphabetical order. Prompts without a topic form the last cluster."""

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts that all have no topic."""
        if all(prompt.topic is None for prompt in prompts):
            raise InputError("TopicClusters found no prompt with a topic; name its column, or cluster by another class")

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Numbers the topics alphabetically.

        Raises:
            InputError: if no prompt has a topic.
        """
        self.check(prompts, plan.rows)
        topics = sorted({prompt.topic for prompt in prompts if prompt.topic is not None})
        number = {topic: i for i, topic in enumerate(topics)}
        return np.array([len(topics) if p.topic is None else number[p.topic] for p in prompts], dtype=np.int64)


class RandomClusters(Clustering):
    """Random clusters of equal size, up to one prompt.

    Args:
        clusters: Number of clusters (K).
        seed: Seed of the random assignment.

    Raises:
        InputError: if `clusters` is below 1.
    """

    def __init__(self, clusters: Count = 16, seed: Seed = 0) -> None:
        self.clusters = clusters
        self.seed = seed
        require_in_range(self)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Assigns the prompts of the pool at random."""
        return np.random.default_rng(self.seed).permutation(len(prompts)) % self.clusters


class SameSizeClusters(Control[Clustering], Clustering):
    """Random clusters with the sizes of another clustering's clusters.

    An effect that remains comes from the sizes of the clusters, not from their members.

    Args:
        inner: Clustering whose sizes, among the planned prompts, are kept.
        seed: Seed of the random assignment.
    """

    def __init__(self, inner: Clustering, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Permutes the inner clustering's labels among the planned prompts."""
        labels = clusters_by(self.inner, plan, prompts, features)
        return permute_within(labels, np.zeros_like(labels), plan.rows, self.seed)


class PermutedClusters(Control[Clustering], Clustering):
    """Another clustering, with members exchanged at random among prompts of similar difficulty.

    Each cluster keeps its size and its distribution of difficulty, but loses its content.

    Args:
        inner: Clustering whose members are exchanged.
        label: Name of the difficulty label, from the data or the labels file. Every planned prompt must have it.
        bins: Number of quantile bins of the label. Prompts are exchanged within a bin.
        seed: Seed of the random exchange.

    Raises:
        InputError: if `bins` is below 1.
    """

    def __init__(self, inner: Clustering, label: str = "difficulty", bins: Count = 10, seed: Seed = 0) -> None:
        self.inner = inner
        self.by = label
        self.bins = bins
        self.seed = seed
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner clustering refuses, and planned prompts without the label."""
        super().check(prompts, planned)
        require_label(type(self).__name__, self.by, prompts, planned)

    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Permutes the inner clustering's labels inside each bin.

        Raises:
            InputError: if a planned prompt does not have the label.
        """
        bins = bin_by(require_label(type(self).__name__, self.by, prompts, plan.rows), plan.rows, self.bins)
        return permute_within(clusters_by(self.inner, plan, prompts, features), bins, plan.rows, self.seed)


class BalancedServing(DataCallback):
    """Serves the clusters' batches in turn, so that none is crowded out by a large one; for `data.extra`.

    Each cluster keeps the order of its batches. A cluster whose batches are used up is passed over, so in a run that ends
    before its plan does, small clusters are served whole, and large ones in part. A batch of several clusters belongs to
    the one that most of its prompts are of.

    Source: ours; SAERL's clusters are served in proportion to their sizes, which selects nothing (docs/method.md).
    """

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Moves whole batches; prompts that fill none stay at the end."""
        from scipy.stats import mode

        batches = plan.batches()  # (B, P)
        owner = mode(plan.cluster[batches], axis=1).mode  # (B,)
        turns = turn_of_each(owner)
        self._idle = "" if owner.size and turns.max() < len(owner) - 1 else "all batches are of one cluster"
        sizes = np.unique(owner, return_counts=True)[1]
        self._report = {"balanced": float(sizes.min() * len(sizes) / len(owner)) if len(sizes) else 1.0}
        served = batches[np.argsort(turns, kind="stable")]
        return plan.reorder(np.concatenate([served.ravel(), plan.rows[batches.size :]]))


def turn_of_each(owner: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Counts, for each batch, the batches of the same cluster before it."""
    by_owner = np.argsort(owner, kind="stable")
    sizes = np.unique(owner, return_counts=True)[1]
    turns = np.empty(len(owner), dtype=np.int64)
    turns[by_owner] = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return turns
