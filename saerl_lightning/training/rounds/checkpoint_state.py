"""What rounds learned, in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning

from saerl_lightning.training.rounds.rounds import Rounds


class RoundsInCheckpoint(lightning.Callback):
    """Saves what a run's rounds learned under `rounds`, and restores it; a run without a checkpoint begins anew.

    All processes learn from the same outcomes, so they have the same state.

    Args:
        rounds: Rounds of the run.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begins anew with a fit; a checkpoint is read after this."""
        if stage == "fit":
            self.rounds.load_state_dict({})

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the state, if there is any."""
        if state := self.rounds.state_dict():
            checkpoint["rounds"] = state

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        """Restores the state; a checkpoint that was made without rounds has none."""
        self.rounds.load_state_dict(checkpoint.get("rounds", {}))
