"""Arranges the plan anew while it is served, by the operations that decide while training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.callback import DataCallback
from saerl_lightning.given import returned
from saerl_lightning.plan import SamplePlan


def revising(operations: Mapping[str, DataCallback]) -> list[DataCallback]:
    """Returns the operations that arrange the plan anew while training runs."""
    return [each for each in operations.values() if type(each).revise is not DataCallback.revise]


def revise(operations: Sequence[DataCallback], plan: SamplePlan, handed_out: Int[np.ndarray, " S"]) -> SamplePlan:
    """Has operations arrange, one after the other, what is left of an epoch.

    Args:
        operations: Operations with `revise`, in the order in which they are asked.
        plan: Plan as it was before training.
        handed_out: Pool rows that were handed out in this epoch, in their order.

    Returns:
        The plan, which begins with the rows handed out and is at most as long as before.

    Raises:
        InputError: if an operation does not return such a plan.
    """
    again = any(operation.repeats for operation in operations)
    left = plan.rows if again else plan.rows[~np.isin(plan.rows, handed_out)]
    planned, served = len(plan.rows), len(handed_out)
    plan = replace(plan, rows=np.concatenate([handed_out, left]))
    for operation in operations:
        plan = revised(operation, plan, served)
    return replace(plan, rows=plan.rows[:planned])


def revised(operation: DataCallback, plan: SamplePlan, served: int) -> SamplePlan:
    """Returns the plan as an operation arranges it anew.

    Raises:
        InputError: if it is none, changes what was handed out, or does not serve what is left.
    """
    return returned.revision(
        f"{type(operation).__name__}.revise returned", operation.revise(plan, served), plan, served
    )
