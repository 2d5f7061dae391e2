"""The seam of data operations: anything that turns a plan into a plan, and the four roles of the method.

`apply` is written once a role; an operation of the paper fills in one method. It decides before training starts and
looks at no reward; an operation that learns from outcomes does so in `observe` and keeps what it learned in its state.
N prompts in the pool, M planned, P a batch, B batches, F feature columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saerl_lightning.data.ordering import cluster_first
from saerl_lightning.data.scores import grouping_agreement, spearman
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Outcomes, Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class DataCallback(ABC):
    """An operation on the order of training. The constructor only stores."""

    _report: Mapping[str, float] = MappingProxyType({})  # what the roles' last `apply` did, in numbers
    _idle: str = ""  # what the roles' last `apply` failed to do

    @property
    def needs_features(self) -> bool:
        """Whether `apply` reads feature rows, so that a signal source must be configured."""
        return False

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts that `apply` can't work with, before feature rows are computed; by default none.

        Args:
            prompts: the pool with the reference prompts behind it, as `apply` gets them.
            planned: rows that are certain to be planned when `apply` is called; none where a filter comes before.

        Raises:
            InputError: naming what is missing, and what to write instead.
        """

    @abstractmethod
    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Returns the next plan: deterministic, and the input stays as it was.

        Args:
            plan: what is served so far.
            prompts: the pool, N prompts; the plan's rows are positions in it.
            features: (N, F) rows about the pool, in its order; None where no signal is configured.
        """

    def observe(self, outcomes: Outcomes) -> None:
        """Learns from the rewards of one trained batch; by default nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly: plain numbers, strings, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def idle(self) -> str:
        """Says why the last `apply` did nothing, as in "no prompt is dropped"; empty where it did something.

        The four roles say it. An operation that only observes has nothing to say.
        """
        return self._idle

    def metrics(self) -> dict[str, float]:
        """Numbers for the logs; the datamodule puts the slot's name in front.

        The four roles fill in what holds for all of their kind. A subclass that has more to tell adds it to theirs.
        """
        return dict(self._report)


class Filtering(DataCallback):
    """Drops prompts, each with a reason in the ledger. The order of the others stays."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Rates the pool, then drops the planned prompts that `keep` refuses."""
        rated = replace(plan, quality=self.quality(plan, prompts, features))
        refused = plan.rows[~self.keep(rated, prompts, features)[plan.rows]]
        self._report = {"kept": float(len(plan.rows) - len(refused)), "dropped": float(len(refused))}
        self._idle = "" if len(refused) else "no prompt is dropped"
        return rated.drop(dict.fromkeys(refused.tolist(), self.reason()))

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt of the pool, higher is better; NaN where it has no rating."""
        return np.full(len(prompts), np.nan)

    @abstractmethod
    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Says which prompts stay; `plan.quality` holds the ratings already."""

    def reason(self) -> str:
        """Why a prompt was dropped, for the ledger."""
        return f"dropped by {type(self).__name__}"


class Clustering(DataCallback):
    """Labels every prompt and lays batches cluster-first: as many batches as can be hold one cluster only."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Stores the labels; inside a cluster the present order stays."""
        cluster = self.label(plan, prompts, features)
        unrated = np.full(len(prompts), np.nan)
        labelled = replace(plan, cluster=cluster)
        topics = [prompts[row].topic for row in plan.rows.tolist()]
        self._report = {**_sizes(cluster[plan.rows]), **grouping_agreement(cluster[plan.rows], topics)}
        self._idle = "" if len(np.unique(cluster[plan.rows])) > 1 else "all prompts are in one cluster"
        return labelled.reorder(cluster_first(plan.rows, cluster, unrated, plan.batch_size))

    @abstractmethod
    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Gives every prompt of the pool the number of its cluster, from 0."""


class Curriculum(DataCallback):
    """Rates every prompt and orders each cluster easy-to-hard, so that all clusters get harder together."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Stores the ratings and lays batches cluster-first by them; without clusters the pool is one cluster."""
        rated = replace(plan, difficulty=self.difficulty(plan, prompts, features))
        known = plan.rows[~np.isnan(rated.difficulty[plan.rows])]
        length = np.array([len(prompts[row].text) for row in known.tolist()], dtype=np.float64)
        self._report = {"spearman_length": spearman(rated.difficulty[known], length)}
        self._idle = "" if len(np.unique(rated.difficulty[plan.rows])) > 1 else "all prompts are rated alike"
        return rated.reorder(cluster_first(plan.rows, plan.cluster, rated.difficulty, plan.batch_size))

    @abstractmethod
    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt of the pool, lower is served earlier; NaN (no rating) is served last in its cluster."""


class Mixing(DataCallback):
    """Moves prompts between whole batches; the left-over that fills no batch stays where it is."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Writes the blended batches back and notes, for each moved prompt, the batch it stood in before."""
        before = plan.batches()  # (B, P)
        blended = self.blend(before.copy())  # (B, P)
        mixed = plan.reorder(np.concatenate([blended.ravel(), plan.rows[before.size :]]))
        moved = note_moves(plan, mixed)
        self._report = {"share": share_moved(plan, moved)}
        self._idle = "" if self._report["share"] else _unmoved(before)
        return moved

    @abstractmethod
    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Returns the same pool rows, laid into batches anew."""


def note_moves(before: SamplePlan, after: SamplePlan) -> SamplePlan:
    """Writes into `mixed_from` of each prompt that changed its batch the one it stood in before."""
    old, new = before.batch_of(), after.batch_of()
    return replace(after, mixed_from=np.where(old != new, old, before.mixed_from))


def share_moved(before: SamplePlan, after: SamplePlan) -> float:
    """Share of the served prompts that stand in another batch than before; 0 where none is served."""
    served = before.batches().ravel()
    return float((before.batch_of() != after.batch_of())[served].mean()) if len(served) else 0.0


def _unmoved(batches: Int[np.ndarray, "B P"]) -> str:
    return f"no prompt moves to another batch ({batches.shape[0]} of {batches.shape[1]} prompts)"


def _sizes(cluster: Int[np.ndarray, " M"]) -> dict[str, float]:
    """How many clusters occur, and how many prompts they hold."""
    sizes = np.unique(cluster, return_counts=True)[1]
    if not len(sizes):
        return {"clusters": 0.0}
    spread = {"size_min": sizes.min(), "size_median": np.median(sizes), "size_max": sizes.max()}
    return {"clusters": float(len(sizes)), **{name: float(size) for name, size in spread.items()}}
