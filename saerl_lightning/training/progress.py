"""A progress bar that says which phase a step is in."""

from __future__ import annotations

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar

from saerl_lightning.training.policy import PolicyModule


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the running phase (generate, score, forward, backward, sync) beside the epoch."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Listens to the module's phases."""
        super().on_train_epoch_start(trainer, *_)
        pl_module = trainer.lightning_module
        if isinstance(pl_module, PolicyModule) and not self.is_disabled:
            pl_module.phases.listener = self._show

    def _show(self, phase: str) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.set_description(f"Epoch {self.trainer.current_epoch} {phase:<9}")
