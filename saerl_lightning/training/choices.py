"""What `model.keep` and `model.reweighting` make of a step's rows, over all ranks, and which parts fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.data.callback import DataCallback
from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.objective.reweighting.reweighting import Everywhere, Reweighting
from saerl_lightning.online.history import PREDICTIONS
from saerl_lightning.online.operation import Learner
from saerl_lightning.training.guard import refuse_truncated_support
from saerl_lightning.training.lookahead.checkpoint import AheadInCheckpoint
from saerl_lightning.training.replay.stored_groups import ReplayInCheckpoint
from saerl_lightning.training.rounds.checkpoint_state import RoundsInCheckpoint

if TYPE_CHECKING:
    import lightning

    from saerl_lightning.training.grading import GradedGroups
    from saerl_lightning.training.grpo import GRPOModule
    from saerl_lightning.training.rows import StepRows


def kept_by_rewards(keep: Keep, sampled: GradedGroups, batches: int) -> GradedGroups:
    """Leaves completions out of the loss before advantages are known; none, if they are chosen by advantages.

    Args:
        keep: Choice of the completions.
        sampled: Graded groups of this rank.
        batches: Number of batches that the run has trained on before.
    """
    return sampled if keep.reads_advantages else sampled.keeping(keep.keep(sampled.answers(batches)))


def kept_by_advantages(
    keep: Keep,
    sampled: GradedGroups,
    step: StepRows,
    advantages: Float[Tensor, "P G"],
    everywhere: Everywhere,
    batches: int,
) -> tuple[GradedGroups, StepRows]:
    """Leaves completions out of the loss by the advantages of all ranks; none, if they are chosen by rewards.

    Args:
        keep: Choice of the completions.
        sampled: Graded groups of this rank.
        step: Rows of these groups.
        advantages: Advantages of these groups.
        everywhere: Function that joins the values of all ranks.
        batches: Number of batches that the run has trained on before.
    """
    if not keep.reads_advantages:
        return sampled, step
    own_answers = sampled.answers(batches, advantages)
    parts = own_answers.total, own_answers.right, own_answers.lengths, own_answers.advantages
    known = torch.stack(parts, 2).double()  # (P, G, 4)
    pool_rows, own = everywhere(torch.tensor(sampled.batch.rows))
    joined, _ = everywhere(known)
    order = pool_rows.argsort()  # among equal completions it must not matter which rank has which prompts
    chosen = torch.empty(joined.shape[:2], dtype=torch.bool)
    chosen[order] = keep.keep(KnownCompletions(*joined[order].unbind(2), batches=batches))
    kept = chosen[own]
    return sampled.keeping(kept), step.keeping(kept.flatten())


def weighed(
    reweighting: Reweighting,
    sampled: GradedGroups,
    step: StepRows,
    advantages: Float[Tensor, "P G"],
    everywhere: Everywhere,
    operations: Mapping[str, DataCallback],
) -> StepRows:
    """Returns a step's rows with their weights.

    Args:
        reweighting: Weights of completions or tokens.
        sampled: Graded groups of this rank.
        step: Rows of these groups.
        advantages: Advantages of these groups.
        everywhere: Function that joins the values of all ranks.
        operations: Data operations by slot, which have not learned from this step yet.
    """
    read = predicted(operations, sampled.batch.rows) if reweighting.predicted else {}
    labels = read[str(reweighting.reads)] if read else sampled.labels(reweighting.reads)
    return step.with_weights(reweighting.weights(step.to_weigh(advantages, labels), everywhere))


def predicted(operations: Mapping[str, DataCallback], rows: Sequence[int]) -> dict[str, Float[Tensor, " P"]]:
    """Returns what `data.online` predicts of prompts, by the names of `PREDICTIONS`; {} if it predicts nothing.

    All ranks come to the same numbers, because all have observed all outcomes.

    Args:
        operations: Data operations by slot.
        rows: Pool rows of the prompts (P).
    """
    online = operations.get("online")
    made = online.predict(np.array(rows, dtype=np.int64)) if isinstance(online, Learner) else None
    return {} if made is None else {n: torch.from_numpy(v).float() for n, v in zip(PREDICTIONS, made, strict=True)}


def weighs_tokens(reweighting: Reweighting | None) -> bool:
    """Whether weights are computed from the tokens' log-probabilities."""
    return reweighting is not None and reweighting.level == "tokens"


def predicted_rates(operations: Mapping[str, DataCallback], rows: Sequence[int]) -> Float[np.ndarray, " n"]:
    """Returns the pass rates that `data.online` predicts; NaN if it predicts none.

    Args:
        operations: Data operations by slot.
        rows: Pool rows of the prompts.
    """
    made = predicted(operations, rows)
    return made[PREDICTIONS[0]].double().numpy() if made else np.full(len(rows), np.nan)


def refuse_unfit(module: GRPOModule) -> None:
    """Refuses rounds, replay, a choice or weights that do not fit objective, sampling and data operations.

    Raises:
        InputError: with what to write instead.
    """
    keep, reweighting, rounds = module.keep, module.reweighting, module.dynamic_sampling
    objective, sampling = module.objective, module.sampling
    if rounds is not None:
        rounds.check(sampling.group_size)
    if keep is not None:
        keep.check(sampling.group_size)
        if rounds is not None and not rounds.equal_groups:
            raise InputError(
                f"model.keep is {type(keep).__name__}, which chooses within groups of {sampling.group_size}, and "
                f"model.dynamic_sampling {type(rounds).__name__} makes groups of unequal size; write --model.keep null, or "
                "--model.dynamic_sampling null"
            )
    if reweighting is not None:
        if reweighting.level == "tokens" and sampling.temperature > 0:
            refuse_truncated_support(sampling)
        reweighting.require(objective.weighs, type(objective).__name__)
        if reweighting.predicted:
            _require_predictions(type(reweighting).__name__, getattr(module.trainer, "datamodule", None))
    if module.replay is not None:
        refuse_replay(module)


def refuse_replay(module: GRPOModule) -> None:
    """Refuses parts that groups of earlier steps do not fit.

    Raises:
        InputError: naming the part and what to write instead.
    """
    rounds = module.dynamic_sampling
    if not module.objective.compares_old:
        name = type(module.objective).__name__
        raise InputError(
            f"model.replay trains on completions of older weights, and {name} has no ratio to correct "
            "for them (compares_old); write an objective that has one, or --model.replay null"
        )
    if module.lookahead:
        raise InputError(
            "model.lookahead and model.replay are both on, and which step's weights sampled a batch is then not known to "
            "the replay; write --model.replay null, or --model.lookahead false"
        )
    if weighs_tokens(module.reweighting):
        raise InputError(
            f"model.reweighting {type(module.reweighting).__name__} weighs tokens by the policy's present probabilities, and "
            "groups of model.replay have those of the weights that sampled them; write --model.reweighting null, or "
            "--model.replay null"
        )
    if rounds is not None and not rounds.equal_groups:
        raise InputError(
            f"model.replay stores groups of equal size, and model.dynamic_sampling {type(rounds).__name__} makes unequal "
            "ones; write --model.replay null, or --model.dynamic_sampling null"
        )
    refuse_truncated_support(module.sampling)


def in_checkpoints(module: GRPOModule) -> list[lightning.Callback]:
    """Returns the callbacks that save what a module's steps leave for later ones."""
    made: list[lightning.Callback] = [] if module.ahead is None else [AheadInCheckpoint()]
    if module.dynamic_sampling is not None:
        made.append(RoundsInCheckpoint(module.dynamic_sampling))
    return made if module.replay is None else [*made, ReplayInCheckpoint(module.replay)]


def _require_predictions(name: str, datamodule: object) -> None:
    online = getattr(datamodule, "operations", {}).get("online")
    if not (isinstance(online, Learner) and online.predicts):
        seen = "null" if online is None else f"{type(online).__name__}, which predicts none"
        raise InputError(
            f"model.reweighting {name} reads predicted pass rates, and data.online is {seen}; give -c online/mopps.yaml or "
            "another selection by a belief, or write --model.reweighting null"
        )
