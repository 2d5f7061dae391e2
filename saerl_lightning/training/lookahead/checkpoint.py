"""The batch that was sampled ahead, in checkpoints: the weights that sampled it are gone when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

import lightning

from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.records import PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward, weighted_sum
from saerl_lightning.training.grading import GradedGroups

if TYPE_CHECKING:
    from saerl_lightning.training.grpo import GRPOModule

WIDE = ("tokens", "mask", "logprobs", "own")  # fields of rollouts with a column a token
ROLLOUTS = (*WIDE, "truncated", "texts", "group_size", "weight_version")


class AheadInCheckpoint(lightning.Callback):
    """Saves the batch that was sampled ahead, and gives it to the step that trains on it after a resume.

    A batch whose sampling failed is not saved: a resumed run samples it again, by its present weights.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None  # until its step

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Waits for the batch, and adds that of all ranks under `ahead`; adds the version of the weights."""
        module = cast("GRPOModule", pl_module)
        assert module.ahead is not None
        checkpoint["weight_version"] = module.weight_version
        parts = gather_objects(module.ahead.finished(module.global_step), trainer.world_size)
        known = [part for part in parts if part is not None]
        saved = stored(known, module.sampling) if len(known) == len(parts) else self._loaded
        if saved is not None:
            checkpoint["ahead"] = saved

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the batch; the next sync gives the weights the version that they had."""
        self._loaded = checkpoint.get("ahead")
        if "weight_version" in checkpoint:
            cast("GRPOModule", pl_module).weight_version = checkpoint["weight_version"] - 1

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Gives the batch to the first step, if that serves, samples and grades as the run that was saved."""
        module, loaded, self._loaded = cast("GRPOModule", pl_module), self._loaded, None
        if loaded is None or loaded["sampling"] != asdict(module.sampling):
            return
        groups = share_of(loaded, batch, module.rewards, trainer.global_rank, trainer.world_size)
        if groups is not None:
            assert module.ahead is not None
            masked = replace(groups, masks_truncated=module.objective.masks_truncated)
            module.ahead.hold(masked, module.global_step)


def stored(parts: Sequence[GradedGroups], sampling: Sampling) -> dict[str, Any]:
    """Returns the batch of all ranks as plain values, which load with `weights_only`.

    Args:
        parts: Graded groups of every rank.
        sampling: Sampling settings of the batch.
    """
    ranks, share = len(parts), len(parts[0].batch.rows)
    # Place p of the batch is on rank p modulo the number of ranks.
    whole = GradedGroups.join(parts).of_groups([p % ranks * share + p // ranks for p in range(ranks * share)])
    return {
        "rows": whole.batch.rows,
        "sampling": asdict(sampling),
        "rollouts": {name: getattr(whole.rollouts, name) for name in ROLLOUTS},
        "rewards": whole.rewards,
        "spent": [part.spent for part in parts],
        "parts": [part.parts for part in parts],
    }


def share_of(
    saved: Mapping[str, Any], batch: PromptBatch, rewards: Sequence[Reward], rank: int, ranks: int
) -> GradedGroups | None:
    """Returns a rank's share of a stored batch; None if it is of other prompts or rewards.

    Args:
        saved: What `stored` returned, perhaps for another number of ranks.
        batch: This rank's prompts.
        rewards: Rewards of the run.
        rank: Number of this rank.
        ranks: Number of ranks.
    """
    own = range(rank, len(saved["rows"]), ranks)
    if [saved["rows"][place] for place in own] != batch.rows or {*saved["rewards"]} != {each.name for each in rewards}:
        return None
    rollouts = trimmed(Rollouts(**saved["rollouts"]).of_groups(own))
    grades = {each.name: saved["rewards"][each.name][list(own)] for each in rewards}
    spent, parts = (saved[name][rank] if rank < len(saved[name]) else {} for name in ("spent", "parts"))
    total = weighted_sum(rewards, grades)
    return GradedGroups(batch, rollouts, grades, total, [0] * len(own), spent=spent, parts=parts)


def trimmed(rollouts: Rollouts) -> Rollouts:
    """Returns rows as wide as the longest of them, as they were sampled: sums over wider ones round otherwise."""
    width = int(rollouts.lengths.max())
    return replace(rollouts, **{name: getattr(rollouts, name)[:, :width] for name in WIDE})
