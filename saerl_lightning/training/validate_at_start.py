"""Validates before the first step, so that every curve begins where the policy began."""

import lightning

from saerl_lightning.data.resume import before_any_step


class ValidateAtStart(lightning.Callback):
    """Runs one validation before training, unless the run is resumed or has no validation sets."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Runs the validation loop that Lightning would run later on."""
        if trainer.global_step > 0 or not trainer.enable_validation:
            return
        trainer.validating = True
        with before_any_step(trainer):
            trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
