"""Making the plan: the fold over the operations, and the checks that it can be served and resumed.

It never looks inside an operation: each gets the plan so far, the prompts, and the feature rows that were computed once.
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

from saerl_lightning.data.callback import DataCallback, Filtering
from saerl_lightning.data.features import nonfinite_rows, row_count
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.source import ProbeReference
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    import lightning

    from saerl_lightning.signals.source import Features, SignalSource

T = TypeVar("T")


@dataclass(frozen=True)
class Planner:
    """Everything that decides the order of training, once the pool is known.

    Args:
        batch_size: prompts a batch (P).
        shuffle_seed: of the order that the operations start from; None keeps the pool's.
        signals: what computes feature rows, if an operation reads them.
        operations: by slot name, in the order they are applied.
        reference: prompts that only teach probes; None for none.
    """

    batch_size: int
    shuffle_seed: int | None
    signals: SignalSource | None
    operations: Mapping[str, DataCallback]
    reference: ProbeReference | None = None

    def plan(self, pool: Sequence[Prompt], unservable: Mapping[int, str]) -> tuple[SamplePlan, Features | None]:
        """Folds the operations, in their order, over the shuffled pool.

        Only the plan's rows are shuffled. The pool keeps the source's order, so feature rows and their cache key are the
        same for every shuffle seed. Reference prompts stand behind the pool while the operations work, are in no plan's
        rows, and are cut away in the end.

        Args:
            pool: N prompts.
            unservable: pool rows that must not be served, each with the reason. They have feature rows all the same.

        Returns:
            The plan of the pool, and the feature rows: the pool's N, then the reference's; None where no operation
            reads any.

        Raises:
            InputError: if an operation misses a label, reads features and there is no signal, a feature is no number, or
                too few prompts are left.
        """
        prompts = [*pool, *(self.reference.prompts(pool) if self.reference is not None else [])]
        plan = replace(SamplePlan.sequential(len(prompts), self.batch_size), rows=self._start(len(pool)))
        plan = plan.drop(unservable)
        require_served(plan, len(pool))
        certain = plan.rows
        for operation in self.operations.values():
            operation.check(prompts, certain)
            certain = certain[:0] if isinstance(operation, Filtering) else certain
        features = compute_features(prompts, self.signals, self.operations)
        for operation in self.operations.values():
            plan = operation.apply(plan, prompts, features)
            require_served(plan, len(pool))
        return first_prompts(plan, len(pool)), features

    def _start(self, count: int) -> Int[np.ndarray, " N"]:
        """The order that the operations start from."""
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
    """Makes a plan without a datamodule, for tests and notebooks; see `Planner`."""
    return Planner(batch_size, shuffle_seed, signals, operations).plan(prompts, unservable)[0]


def first_prompts(plan: SamplePlan, count: int) -> SamplePlan:
    """The plan as if only the first `count` prompts had ever been there; it serves none of the others."""
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
    """Computes the feature rows once for all operations; None where none reads them.

    Raises:
        InputError: if an operation reads features and there is no signal, or a feature is no number.
    """
    readers = [f"data.{slot} ({type(op).__name__})" for slot, op in operations.items() if op.needs_features]
    if not readers:
        return None
    if signals is None:
        raise InputError(
            f"{readers[0]} reads feature rows, but data.signals is null; "
            "name a signal source, e.g. --data.signals RandomSignals"
        )
    features = signals.features(prompts)
    require_rows(features, prompts, type(signals).__name__)
    return with_small_indices(features)


def with_small_indices(features: Features) -> Features:
    """Sparse rows with 32-bit indices where those suffice: half the memory, and scikit-learn's solvers take no others."""
    if isinstance(features, np.ndarray) or features.nnz > np.iinfo(np.int32).max:
        return features
    indices, starts = features.indices.astype(np.int32, copy=False), features.indptr.astype(np.int32, copy=False)
    return csr_array((features.data, indices, starts), features.shape)


def idle_slots(operations: Mapping[str, DataCallback]) -> dict[str, str]:
    """Slots whose operation was applied and did nothing: by slot, a sentence that says why."""
    said = {slot: (type(operation).__name__, operation.idle()) for slot, operation in operations.items()}
    return {slot: f"{name} is on, but does nothing: {why}" for slot, (name, why) in said.items() if why}


def require_rows(features: Features, prompts: Sequence[Prompt], name: str) -> None:
    """Refuses features that are not one row of finite numbers a prompt. Sparse rows are never made dense.

    Raises:
        InputError: naming the source, and the first prompt whose row holds a NaN or an infinity.
    """
    count = row_count(features)
    if count != len(prompts):
        raise InputError(f"{name} gave {count} feature rows for {len(prompts)} prompts; give one a prompt")
    broken = nonfinite_rows(features)
    if len(broken):
        raise InputError(
            f"{name} gave {len(broken)} prompts feature rows with NaN or infinite numbers (first: "
            f"'{prompts[int(broken[0])].uid}'); mend the source, or take these prompts out of data.train"
        )


def require_served(plan: SamplePlan, pool: int) -> None:
    """Refuses a plan that fills no batch.

    Raises:
        InputError: naming how many prompts of the pool are left and why the others went.
    """
    reasons = Counter(plan.dropped.values()).most_common(5)
    why = "; ".join(f"{count} dropped: {reason}" for reason, count in reasons) or "none was dropped"
    if not len(plan.rows):
        raise InputError(f"data.train: no prompt is left of {pool} ({why}); loosen data.filtering")
    if len(plan.rows) < plan.batch_size:
        raise InputError(
            f"data.batch_size is {plan.batch_size}, but only {len(plan.rows)} of {pool} prompts are left "
            f"({why}); write a smaller batch_size or give more prompts"
        )


def plan_digest(plan: SamplePlan, prompts: Sequence[Prompt]) -> str:
    """Names what is served and in which order: equal digests, equal training data."""
    digest = hashlib.sha256(f"{plan.batch_size}".encode())
    for row in plan.rows.tolist():
        digest.update("\0".join((prompts[row].uid, prompts[row].text, prompts[row].answer, "")).encode())
    return digest.hexdigest()[:16]


def made_once(trainer: lightning.Trainer | None, make: Callable[[], T]) -> T:
    """Makes something on the first process and hands it to all; without a trainer it is simply made.

    The others wait as long as the process group lets them (10 minutes with NCCL, 30 with gloo): where features of many
    prompts are still to be computed, fill their cache with `main.py plan` before.

    Raises:
        InputError: on every process, if the first one raised it.
        RunStopped: on the other processes, if the first one failed in another way; that one raises what it met.
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
    made, failure = trainer.strategy.broadcast((made, failure))  # also what failed: the others wait for it
    if failure is not None:
        raise met or failure
    return made[0]
