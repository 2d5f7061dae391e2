"""Lightning's ModelCheckpoint, with a `last.ckpt` that is the last one."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Saves every n steps, and always after a run's last step.

    ModelCheckpoint leaves `last.ckpt` at the last multiple of n. Where `max_steps` ends the run inside an epoch, saving
    must not wait for the epoch's end either: Lightning would note the epoch as finished, and a run that is resumed with
    more steps would stop at once.
    """

    @property
    def state_key(self) -> str:
        """A name without the settings: a resumed run may save more or less often."""
        return type(self).__name__

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time to, and after the last of `max_steps`."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if 0 <= trainer.max_steps <= trainer.global_step:
            self._save_if_new(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves what was trained since."""
        self._save_if_new(trainer)

    def _save_if_new(self, trainer: lightning.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
