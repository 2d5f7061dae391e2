"""DataCallback: the interface of data operations, which turn a plan into a plan, and their five roles.

Each role implements `apply` once; an operation implements one method of its role. `apply` runs before training and
knows no rewards. An operation that learns from rewards does so in `observe`, keeps the result in its state, and
arranges what is not served yet in `revise`. N prompts in the pool, M planned, P a batch, B batches, F feature columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from saerl_lightning.data.ordering import cluster_first
from saerl_lightning.data.scores import cluster_sizes, grouping_agreement, spearman
from saerl_lightning.given import returned
from saerl_lightning.plan import SamplePlan, note_moves, share_moved
from saerl_lightning.records import Outcomes, Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class DataCallback(ABC):
    """An operation on the training order. The constructor only stores its arguments."""

    _report: Mapping[str, float] = MappingProxyType({})  # numbers about the last `apply`
    _idle: str = ""  # why the last `apply` had no effect

    @property
    def needs_features(self) -> bool:
        """Whether `apply` reads feature rows, and thus needs a signal source."""
        return False

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses prompts that `apply` can't work with, before features are computed. By default refuses nothing.

        Args:
            prompts: Prompts of the pool, followed by the reference prompts, as in `apply`.
            planned: Rows that are certainly planned when `apply` is called; none after a filter.

        Raises:
            InputError: with what is missing, and what to write instead.
        """

    @abstractmethod
    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Returns the next plan. Deterministic; the given plan does not change.

        Args:
            plan: Plan so far.
            prompts: Prompts of the pool (N). The plan's rows are positions in this list.
            features: Feature rows of the pool, (N, F); None without a signal source.
        """

    def observe(self, outcomes: Outcomes) -> None:
        """Learns from the rewards of one trained batch. By default does nothing."""

    @property
    def repeats(self) -> bool:
        """Whether `revise` may serve a prompt again before the epoch ends; false by default."""
        return False

    def revise(self, plan: SamplePlan, served: int) -> SamplePlan:
        """Arranges the prompts that are not served yet, before every batch. By default keeps the order.

        Deterministic and without side effects: with several processes, the first one decides for all, and a resumed run
        asks again.

        Args:
            plan: Prompts of this epoch that were handed out, in their order, then those that are left in the order of
                the plan; with `repeats`, all planned prompts are left.
            served: Number of prompts that were handed out. They must stay first.

        Returns:
            The plan with the rest in another order, made by `plan.go_on(served, rest)`.
        """
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a checkpoint needs to resume exactly: numbers, strings, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""

    def idle(self) -> str:
        """Returns why the last `apply` had no effect, such as "no prompt is dropped"; "" if it had one or is no plan's."""
        return self._idle

    def doubt(self) -> str:
        """Returns why the last `apply` may have acted at random, such as a probe at chance; "" by default."""
        return ""

    def metrics(self) -> dict[str, float]:
        """Returns numbers for the logs. The datamodule adds the slot's name as a prefix.

        Each role provides the numbers common to its kind. A subclass may add more.
        """
        return dict(self._report)


Inner = TypeVar("Inner", bound=DataCallback)


class Control(DataCallback, Generic[Inner]):
    """A control that uses another operation of the same role: it needs and refuses what the inner operation does.

    A class names it before the role, as in `class SameSizeClusters(Control[Clustering], Clustering)`.
    """

    inner: Inner

    @property
    def needs_features(self) -> bool:
        """Whether the inner operation reads feature rows."""
        return self.inner.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the inner operation refuses."""
        self.inner.check(prompts, planned)

    def idle(self) -> str:
        """Returns why the last `apply` had no effect, also if the reason lies in the inner operation."""
        return self.inner.idle() or super().idle()

    def doubt(self) -> str:
        """Returns why the inner operation may have acted at random."""
        return self.inner.doubt()


class Filtering(DataCallback):
    """Drops prompts, each with a reason in the ledger. The order of the others does not change."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Rates the pool, then drops the planned prompts that `keep` rejects."""
        rated = replace(plan, quality=quality_by(self, plan, prompts, features))
        refused = plan.rows[~kept_by(self, rated, prompts, features)[plan.rows]]
        self._report = {"kept": float(len(plan.rows) - len(refused)), "dropped": float(len(refused))}
        self._idle = "" if len(refused) else "no prompt is dropped"
        return rated.drop(dict.fromkeys(refused.tolist(), returned.text(_said(self, "reason"), self.reason())))

    def quality(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt of the pool, higher is better; NaN for no rating."""
        return np.full(len(prompts), np.nan)

    @abstractmethod
    def keep(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Bool[np.ndarray, " N"]:
        """Returns which prompts to keep. `plan.quality` already contains the ratings."""

    def reason(self) -> str:
        """Returns the reason for dropping a prompt, for the ledger."""
        return f"dropped by {type(self).__name__}"


class Clustering(DataCallback):
    """Assigns every prompt to a cluster and builds batches cluster-first, so that most batches hold a single cluster."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Stores the cluster of each prompt and reorders the plan. The order inside a cluster does not change."""
        cluster = clusters_by(self, plan, prompts, features)
        unrated = np.full(len(prompts), np.nan)
        topics = [prompts[row].topic for row in plan.rows.tolist()]
        self._report = {**cluster_sizes(cluster[plan.rows]), **grouping_agreement(cluster[plan.rows], topics)}
        self._idle = "" if len(np.unique(cluster[plan.rows])) > 1 else "all prompts are in one cluster"
        return replace(plan, cluster=cluster).reorder(cluster_first(plan.rows, cluster, unrated, plan.batch_size))

    @abstractmethod
    def label(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> Int[np.ndarray, " N"]:
        """Returns the cluster of every prompt of the pool, numbered from 0."""


class Curriculum(DataCallback):
    """Rates every prompt and orders each cluster from easy to hard, so that all clusters get harder at the same time."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Stores the ratings and reorders the plan cluster-first. Without clusters, the pool is one cluster."""
        rated = replace(plan, difficulty=difficulty_by(self, plan, prompts, features))
        known = plan.rows[~np.isnan(rated.difficulty[plan.rows])]
        length = np.array([len(prompts[row].text) for row in known.tolist()], dtype=np.float64)
        self._report = {"spearman_length": spearman(rated.difficulty[known], length)}
        self._idle = "" if len(np.unique(rated.difficulty[plan.rows])) > 1 else "all prompts are rated alike"
        return rated.reorder(cluster_first(plan.rows, plan.cluster, rated.difficulty, plan.batch_size))

    @abstractmethod
    def difficulty(
        self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
    ) -> Float[np.ndarray, " N"]:
        """Rates every prompt of the pool. Lower is served earlier; NaN (no rating) is served last in its cluster."""


class Mixing(DataCallback):
    """Moves prompts between whole batches. Prompts that fill no batch are not moved."""

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Reorders the plan by `blend`, and records the previous batch of each moved prompt."""
        before = plan.batches()  # (B, P)
        blended = returned.batches(_said(self, "blend"), self.blend(before.copy()), before)  # (B, P)
        mixed = plan.reorder(np.concatenate([blended.ravel(), plan.rows[before.size :]]))
        moved = note_moves(plan, mixed)
        self._report = {"share": share_moved(plan, moved)}
        self._idle = "" if self._report["share"] else _unmoved(before)
        return moved

    @abstractmethod
    def blend(self, batches: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
        """Returns the same pool rows in other batches."""


class Online(DataCallback):
    """Goes on deciding while training runs: arranges, before every batch, the prompts that are not served yet.

    A subclass implements `revise`; one that learns from rewards also `observe`, `state_dict` and `load_state_dict`.
    """

    group_size: int = 8  # completions a prompt (G); the datamodule sets the run's before `apply`

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Returns the plan as it is: the order is decided while training runs."""
        return plan

    @abstractmethod
    def revise(self, plan: SamplePlan, served: int) -> SamplePlan:
        """Arranges the prompts that are not served yet, before every batch."""


# What a user's class returns may be a list, or of integers; whoever calls its methods takes the arrays from here.


def quality_by(
    operation: Filtering, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
) -> Float[np.ndarray, " N"]:
    """Returns a filter's ratings.

    Raises:
        InputError: if they are not a number a prompt.
    """
    return returned.ratings(_said(operation, "quality"), operation.quality(plan, prompts, features), prompts)


def kept_by(
    operation: Filtering, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
) -> Bool[np.ndarray, " N"]:
    """Returns which prompts a filter keeps.

    Raises:
        InputError: if it is not true or false a prompt.
    """
    return returned.truths(_said(operation, "keep"), operation.keep(plan, prompts, features), prompts)


def clusters_by(
    operation: Clustering, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
) -> Int[np.ndarray, " N"]:
    """Returns the cluster of every prompt.

    Raises:
        InputError: if it is not a whole number a prompt.
    """
    return returned.clusters(_said(operation, "label"), operation.label(plan, prompts, features), prompts)


def difficulty_by(
    operation: Curriculum, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
) -> Float[np.ndarray, " N"]:
    """Returns a curriculum's ratings.

    Raises:
        InputError: if they are not a number a prompt.
    """
    return returned.ratings(_said(operation, "difficulty"), operation.difficulty(plan, prompts, features), prompts)


def applied(
    operation: DataCallback, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None
) -> SamplePlan:
    """Returns the plan that an operation makes.

    Raises:
        InputError: if it is none, or does not fit the pool.
    """
    return returned.plan(_said(operation, "apply"), operation.apply(plan, prompts, features), plan, prompts)


def _said(operation: DataCallback, method: str) -> str:
    return f"{type(operation).__name__}.{method} returned"


def _unmoved(batches: Int[np.ndarray, "B P"]) -> str:
    return f"no prompt moves to another batch ({batches.shape[0]} of {batches.shape[1]} prompts)"
