"""What `model.keep` and `model.reweighting` make of a step's rows, over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.reweighting.reweighting import Everywhere, Reweighting
from saerl_lightning.records import Sampling
from saerl_lightning.training.guard import refuse_truncated_support

if TYPE_CHECKING:
    from saerl_lightning.training.grading import GradedGroups
    from saerl_lightning.training.rows import StepRows


def kept_by_rewards(keep: Keep, sampled: GradedGroups) -> GradedGroups:
    """Leaves completions out of the loss before advantages are known; none, if they are chosen by advantages."""
    return sampled if keep.reads_advantages else sampled.keeping(keep.keep(sampled.answers()))


def kept_by_advantages(
    keep: Keep, sampled: GradedGroups, step: StepRows, advantages: Float[Tensor, "P G"], everywhere: Everywhere
) -> tuple[GradedGroups, StepRows]:
    """Leaves completions out of the loss by the advantages of all ranks; none, if they are chosen by rewards.

    Args:
        keep: Choice of the completions.
        sampled: Graded groups of this rank.
        step: Rows of these groups.
        advantages: Advantages of these groups.
        everywhere: Function that joins the values of all ranks.
    """
    if not keep.reads_advantages:
        return sampled, step
    known = torch.stack([*vars(sampled.answers(advantages)).values()], 2).double()  # (P, G, 4)
    pool_rows, own = everywhere(torch.tensor(sampled.batch.rows))
    joined, _ = everywhere(known)
    order = pool_rows.argsort()  # among equal completions it must not matter which rank has which prompts
    chosen = torch.empty(joined.shape[:2], dtype=torch.bool)
    chosen[order] = keep.keep(KnownCompletions(*joined[order].unbind(2)))
    kept = chosen[own]
    return sampled.keeping(kept), step.keeping(kept.flatten())


def weighed(
    reweighting: Reweighting,
    sampled: GradedGroups,
    step: StepRows,
    advantages: Float[Tensor, "P G"],
    everywhere: Everywhere,
) -> StepRows:
    """Returns a step's rows with their weights.

    Args:
        reweighting: Weights of completions or tokens.
        sampled: Graded groups of this rank.
        step: Rows of these groups.
        advantages: Advantages of these groups.
        everywhere: Function that joins the values of all ranks.
    """
    labels = sampled.labels(reweighting.reads)
    return step.with_weights(reweighting.weights(step.to_weigh(advantages, labels), everywhere))


def refuse_unfit(keep: Keep | None, reweighting: Reweighting | None, objective: Objective, sampling: Sampling) -> None:
    """Refuses a choice or weights that do not fit objective and sampling.

    Raises:
        InputError: with what to write instead.
    """
    if keep is not None:
        keep.check(sampling.group_size)
    if reweighting is not None:
        if reweighting.level == "tokens" and sampling.temperature > 0:
            refuse_truncated_support(sampling)
        reweighting.require(objective.weighs, type(objective).__name__)
