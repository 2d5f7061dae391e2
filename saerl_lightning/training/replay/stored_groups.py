"""How the groups that replay keeps are stored in checkpoints, as plain values that load with `weights_only`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import lightning

from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.records import Rollouts
from saerl_lightning.reward.reward import weighted_sum
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.lookahead.checkpoint import ROLLOUTS
from saerl_lightning.training.replay.replay import Replay, StoredGroup, alone

if TYPE_CHECKING:
    from saerl_lightning.training.grpo import GRPOModule


class ReplayInCheckpoint(lightning.Callback):
    """Saves the stored groups of all processes under `replay`, and deals them out again; a fit without any begins empty.

    Args:
        replay: Replay of the run.
    """

    def __init__(self, replay: Replay) -> None:
        self.replay = replay

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begins without groups; a checkpoint is read after this."""
        if stage == "fit":
            self.replay.stored = []

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the groups of all processes, if there are any."""
        groups = [*itertools.chain(*gather_objects(self.replay.stored, trainer.world_size))]
        if groups:
            checkpoint["replay"] = as_values(groups)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        """Takes every n-th group, with n processes; none that was graded by other rewards."""
        module, saved = cast("GRPOModule", pl_module), checkpoint.get("replay")
        if saved is None or {*saved["rewards"]} != {each.name for each in module.rewards}:
            return
        own = range(trainer.global_rank, len(saved["keys"]), trainer.world_size)
        self.replay.stored = from_values(saved, own, module) if own else []


def as_values(stored: Sequence[StoredGroup]) -> dict[str, Any]:
    """Returns groups as plain values, the oldest first."""
    ordered = sorted(stored, key=lambda each: each.key)
    whole = GradedGroups.join([each.group for each in ordered])
    return {
        "keys": [[*each.key] for each in ordered],
        "rollouts": {name: getattr(whole.rollouts, name) for name in ROLLOUTS},
        "rewards": whole.rewards,
    }


def from_values(saved: Mapping[str, Any], own: Sequence[int], module: GRPOModule) -> list[StoredGroup]:
    """Makes groups of what `as_values` returned.

    Args:
        saved: Plain values of a checkpoint.
        own: Positions of the groups to make.
        module: Module with the rewards, and the data of the prompts.
    """
    keys = [saved["keys"][place] for place in own]
    grades = {each.name: saved["rewards"][each.name][list(own)] for each in module.rewards}
    batch = module.prompts.pool.batch([row for _, _, row in keys], [place for _, place, _ in keys])
    total, masked = weighted_sum(module.rewards, grades), module.objective.masks_truncated
    rollouts = Rollouts(**saved["rollouts"]).of_groups(own)
    groups = GradedGroups(batch, rollouts, grades, total, [0] * len(own), masked)
    return [StoredGroup((key[0], key[1], key[2]), alone(groups, place)) for place, key in enumerate(keys)]
