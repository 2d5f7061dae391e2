"""Which prompts are alike: clusters of feature rows by direction. Its nulls are in `clustering_controls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import Clustering
from saerl_lightning.data.kmeans import largest_first, nearest, reduced_units, spherical_kmeans
from saerl_lightning.data.labels import require_features
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
