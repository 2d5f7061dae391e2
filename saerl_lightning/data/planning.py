"""Making the plan: the fold over the operations, and the checks that it can be served and resumed.

It never looks inside an operation: each gets the plan so far, the pool, and the feature rows that were computed once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.data.callback import DataCallback
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features, SignalSource


def make_plan(
    prompts: Sequence[Prompt],
    unservable: Mapping[int, str],
    batch_size: int,
    shuffle_seed: int | None,
    signals: SignalSource | None,
    operations: Mapping[str, DataCallback],
) -> SamplePlan:
    """Folds the operations, in their order, over the shuffled pool.

    Only the plan's rows are shuffled. The pool keeps the source's order, so feature rows and their cache key are the
    same for every shuffle seed.

    Args:
        prompts: the pool, N prompts.
        unservable: pool rows that must not be served, each with the reason.
        batch_size: prompts a batch (P).
        shuffle_seed: of the order that the operations start from; None keeps the pool's.
        signals: what computes feature rows, if an operation reads them.
        operations: by slot name.

    Raises:
        InputError: if an operation reads features and there is no signal, or too few prompts are left.
    """
    plan = SamplePlan.sequential(len(prompts), batch_size)
    if shuffle_seed is not None:
        plan = plan.reorder(np.random.default_rng(shuffle_seed).permutation(len(prompts)))
    plan = plan.drop(unservable)
    require_served(plan)
    features = compute_features(prompts, signals, operations)
    for operation in operations.values():
        plan = operation.apply(plan, prompts, features)
        require_served(plan)
    return plan


def compute_features(
    prompts: Sequence[Prompt], signals: SignalSource | None, operations: Mapping[str, DataCallback]
) -> Features | None:
    """Computes the feature rows once for all operations; None where none reads them.

    Raises:
        InputError: if an operation reads features and there is no signal.
    """
    readers = [f"data.{slot} ({type(op).__name__})" for slot, op in operations.items() if op.needs_features]
    if not readers:
        return None
    if signals is None:
        raise InputError(
            f"{readers[0]} reads feature rows, but data.signals is null; "
            "name a signal source, e.g. --data.signals RandomSignals"
        )
    return signals.features(prompts)


def require_served(plan: SamplePlan) -> None:
    """Refuses a plan that fills no batch.

    Raises:
        InputError: naming how many prompts are left and why the others went.
    """
    reasons = Counter(plan.dropped.values()).most_common(5)
    why = "; ".join(f"{count} dropped: {reason}" for reason, count in reasons) or "none was dropped"
    if not len(plan.rows):
        raise InputError(f"data.train: no prompt is left of {len(plan.cluster)} ({why}); loosen data.filtering")
    if len(plan.rows) < plan.batch_size:
        raise InputError(
            f"data.batch_size is {plan.batch_size}, but only {len(plan.rows)} of {len(plan.cluster)} prompts are left "
            f"({why}); write a smaller batch_size or give more prompts"
        )


def plan_digest(plan: SamplePlan, prompts: Sequence[Prompt]) -> str:
    """Names what is served and in which order: equal digests, equal training data."""
    digest = hashlib.sha256(f"{plan.batch_size}".encode())
    for row in plan.rows.tolist():
        digest.update("\0".join((prompts[row].uid, prompts[row].text, prompts[row].answer, "")).encode())
    return digest.hexdigest()[:16]
