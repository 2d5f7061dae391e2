"""Applies the operations to the pool in order, and checks that the plan can be served and resumed.

Each operation gets the plan so far, the prompts, and the feature rows, which are computed once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from saerl_lightning.data.callback import (
    Clustering,
    Curriculum,
    DataCallback,
    Filtering,
    Mixing,
    Online,
    applied,
)
from saerl_lightning.data.features import nonfinite_rows
from saerl_lightning.errors import InputError, RunStopped, shown
from saerl_lightning.given.parts import require_list, require_part, written
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import TOO_LONG
from saerl_lightning.prompts.source import ProbeReference
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import features_by

if TYPE_CHECKING:
    import lightning

    from saerl_lightning.signals.source import Features, SignalSource

T = TypeVar("T")

# Slots of the operations, in the order in which they are applied. Operations of `data.extra` follow.
ROLES: dict[str, type[DataCallback]] = {
    "filtering": Filtering,
    "clustering": Clustering,
    "curriculum": Curriculum,
    "mixing": Mixing,
    "online": Online,
}
SLOTS = tuple(ROLES)


@dataclass(frozen=True)
class Planner:
    """Settings that determine the order of training for a given pool.

    Args:
        batch_size: Number of prompts per batch (P).
        shuffle_seed: Seed of the initial shuffling; None keeps the pool's order.
        signals: Signal source for operations that read feature rows.
        operations: Operations by slot name, in the order of application.
        reference: Source of prompts that only probes learn from; None for none.
    """

    batch_size: int
    shuffle_seed: int | None
    signals: SignalSource | None
    operations: Mapping[str, DataCallback]
    reference: ProbeReference | None = None

    def plan(self, pool: Sequence[Prompt], unservable: Mapping[int, str]) -> tuple[SamplePlan, Features | None]:
        """Applies the operations, in order, to the shuffled pool.

        Only the plan's rows are shuffled. The pool keeps the source's order, so that features and their cache key are
        the same for every shuffle seed. Reference prompts follow the pool while the operations work. They are never
        planned, and are removed at the end.

        Args:
            pool: Prompts of the pool (N).
            unservable: Reason for each pool row that must not be served. These rows have features nevertheless.

        Returns:
            The plan of the pool, and the feature rows of the pool and the reference prompts (None if no operation reads
            them).

        Raises:
            InputError: if a label or a signal source is missing, a feature is not finite, or too few prompts are left.
        """
        prompts = [*pool, *(self.reference.prompts(pool) if self.reference is not None else [])]
        plan = replace(SamplePlan.sequential(len(prompts), self.batch_size), rows=self._start(len(pool)))
        plan = plan.drop(unservable)
        require_served(plan, len(pool))
        # A filter may drop any row, so no row is certain to be planned for the operations after it.
        certain = plan.rows
        for operation in self.operations.values():
            operation.check(prompts, certain)
            certain = certain[:0] if isinstance(operation, Filtering) else certain
        features = compute_features(prompts, self.signals, self.operations)
        for operation in self.operations.values():
            plan = applied(operation, plan, prompts, features)
            require_served(plan, len(pool))
        return first_prompts(plan, len(pool)), features

    def _start(self, count: int) -> Int[np.ndarray, " N"]:
        """Returns the order before the operations."""
        return (
            np.arange(count)
            if self.shuffle_seed is None
            else np.random.default_rng(self.shuffle_seed).permutation(count)
        )


def make_plan(
    prompts: Sequence[Prompt],
    unservable: Mapping[int, str],
    batch_size: int,
    shuffle_seed: int | None,
    signals: SignalSource | None,
    operations: Mapping[str, DataCallback],
) -> SamplePlan:
    """Makes a plan without a datamodule, for tests and notebooks. See `Planner`.

    Raises:
        InputError: as for `Planner.plan`, and if an operation is of another class.
    """
    for slot, operation in operations.items():
        require_part(f"make_plan: operations['{slot}']", operation, DataCallback)
    return Planner(batch_size, shuffle_seed, signals, operations).plan(prompts, unservable)[0]


def in_slots(
    owner: str, slots: Mapping[str, DataCallback | None], extra: Sequence[DataCallback] | None
) -> dict[str, DataCallback]:
    """Returns the operations by slot, in the order of application, without empty slots.

    Args:
        owner: Name of the class whose constructor has the slots.
        slots: Operation of each role; None for none.
        extra: Further operations; None for none.

    Raises:
        InputError: if an operation is of another role than its slot, or can't be called as it will be.
    """
    for slot, operation in slots.items():
        if isinstance(operation, DataCallback) and not isinstance(operation, ROLES[slot]):
            made = written(type(operation))
            fits = next((f"{other}={made}" for other, role in ROLES.items() if isinstance(operation, role)), None)
            instead = fits or f"extra=[{made}]"
            raise InputError(f"{owner}.{slot} is {shown(operation)}, no {ROLES[slot].__name__}; write {instead}")
        if operation is not None:
            require_part(f"{owner}.{slot}", operation, ROLES[slot])
    require_list(f"{owner}.extra", [] if extra is None else extra, DataCallback)
    filled = {slot: operation for slot, operation in slots.items() if operation is not None}
    return filled | {f"extra.{number}": operation for number, operation in enumerate(extra or [])}


def first_prompts(plan: SamplePlan, count: int) -> SamplePlan:
    """Reduces a plan to the first `count` prompts of the pool. It must not serve any other."""
    return replace(
        plan,
        cluster=plan.cluster[:count],
        difficulty=plan.difficulty[:count],
        quality=plan.quality[:count],
        mixed_from=plan.mixed_from[:count],
        dropped={row: why for row, why in plan.dropped.items() if row < count},
    )


def compute_features(
    prompts: Sequence[Prompt], signals: SignalSource | None, operations: Mapping[str, DataCallback]
) -> Features | None:
    """Computes the feature rows once for all operations; returns None if no operation reads them.

    Raises:
        InputError: if an operation reads features and there is no signal source, or a feature is not finite.
    """
    readers = [f"data.{slot} ({type(op).__name__})" for slot, op in operations.items() if op.needs_features]
    if not readers:
        return None
    if signals is None:
        raise InputError(
            f"{readers[0]} reads feature rows, but data.signals is null; "
            "name a signal source, e.g. --data.signals RandomSignals"
        )
    features = features_by(signals, prompts)
    require_finite(features, prompts, type(signals).__name__)
    return with_small_indices(features)


def with_small_indices(features: Features) -> Features:
    """Converts sparse rows to 32-bit indices if possible: half the memory, and required by scikit-learn's solvers."""
    if isinstance(features, np.ndarray) or features.nnz > np.iinfo(np.int32).max:
        return features
    indices, starts = features.indices.astype(np.int32, copy=False), features.indptr.astype(np.int32, copy=False)
    return csr_array((features.data, indices, starts), features.shape)


def idle_slots(operations: Mapping[str, DataCallback]) -> dict[str, str]:
    """Returns, for each slot whose operation had no effect, a sentence with the reason."""
    said = {slot: (type(operation).__name__, operation.idle()) for slot, operation in operations.items()}
    return {slot: f"{name} is on, but does nothing: {why}" for slot, (name, why) in said.items() if why}


def doubtful_slots(operations: Mapping[str, DataCallback]) -> dict[str, str]:
    """Returns, for each slot whose operation may have acted at random, a sentence with the reason."""
    said = {slot: (type(operation).__name__, operation.doubt()) for slot, operation in operations.items()}
    return {slot: f"{name}: {why}" for slot, (name, why) in said.items() if why}


def require_finite(features: Features, prompts: Sequence[Prompt], name: str) -> None:
    """Refuses features with NaN or infinity. Sparse rows stay sparse.

    Raises:
        InputError: with the source, and the first prompt whose row contains one.
    """
    broken = nonfinite_rows(features)
    if len(broken):
        raise InputError(
            f"{name} gave {len(broken)} prompts feature rows with NaN or infinite numbers (first: "
            f"'{prompts[int(broken[0])].uid}'); mend the source, or take these prompts out of data.train"
        )


def require_served(plan: SamplePlan, pool: int) -> None:
    """Refuses a plan that fills no batch.

    Raises:
        InputError: with the number of remaining prompts, and the reasons why the others were dropped.
    """
    reasons = Counter(plan.dropped.values()).most_common(5)
    why = "; ".join(f"{count} dropped: {reason}" for reason, count in reasons) or "none was dropped"
    longer = "raise data.chat.max_prompt_tokens"
    if not len(plan.rows):
        instead = longer if reasons and TOO_LONG in reasons[0][0] else "loosen data.filtering"
        raise InputError(f"data.train: no prompt is left of {pool} ({why}); {instead}")
    if len(plan.rows) < plan.batch_size:
        raise InputError(
            f"data.batch_size is {plan.batch_size}, but only {len(plan.rows)} of {pool} prompts are left "
            f"({why}); write a smaller batch_size{f', {longer}' * (TOO_LONG in why)} or give more prompts"
        )


def plan_digest(plan: SamplePlan, prompts: Sequence[Prompt]) -> str:
    """Returns a digest of the served prompts and their order. Equal digests mean equal training data."""
    digest = hashlib.sha256(f"{plan.batch_size}".encode())
    for row in plan.rows.tolist():
        digest.update("\0".join((prompts[row].uid, prompts[row].text, prompts[row].answer, "")).encode())
    return digest.hexdigest()[:16]


def made_once(trainer: lightning.Trainer | None, make: Callable[[], T]) -> T:
    """Calls a function on the first process and sends its result to all. Without a trainer, only calls it.

    The other processes wait until the process group's time-out (10 minutes with NCCL, 30 with gloo). If many features
    must be computed, fill their cache with the verb `plan` first.

    Raises:
        InputError: on every process, if the first one raised it.
        RunStopped: on the other processes, if the first one raised another exception.
    """
    if trainer is None:
        return make()
    made: list[T] = []
    failure: Exception | None = None
    met: Exception | None = None
    if trainer.is_global_zero:
        try:
            made.append(make())
        except InputError as error:
            failure = error
        except Exception as error:
            met, failure = error, RunStopped(f"the first process failed: {error!r}", everywhere=True)
    # A failure is sent too, because the other processes wait for this message.
    made, failure = trainer.strategy.broadcast((made, failure))
    if failure is not None:
        raise met or failure
    return made[0]
