"""What a run says of itself without a terminal to draw on, and at its end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning

from saerl_lightning.errors import program
from saerl_lightning.progress import EVERY_S, duration, on_terminal, rate_text, time_left
from saerl_lightning.training.callbacks import TokenBudget


def lines_in_place_of_bar(trainer: lightning.Trainer) -> None:
    """Replaces a trainer's progress bar by lines, where there is no terminal; a trainer without a bar stays silent."""
    bar = trainer.progress_bar_callback
    if bar is not None and not on_terminal():
        bar.disable()
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        callbacks.insert(0, ProgressLines())


class ProgressLines(lightning.Callback):
    """Prints a line every 30 seconds: steps, share of the run, rate, time left, and the numbers that a bar would show."""

    def __init__(self) -> None:
        self.said = self.began = time.monotonic()
        self.first_step, self.first_share = 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begins to count: time and steps before do not belong to the rate."""
        self.said = self.began = time.monotonic()
        self.first_step, self.first_share = trainer.global_step, share_done(trainer, 0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints the line of a step."""
        if self._due(trainer):
            seconds = time.monotonic() - self.began
            share = share_done(trainer, batch_idx + 1)
            rate = rate_text((trainer.global_step - self.first_step) / seconds, "step")
            left = time_left(share - self.first_share, 1 - self.first_share, seconds)
            shown = trainer.progress_bar_metrics.items()
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown if isinstance(value, float))
            of = f" ({share:.0%})" if share else ""
            print(
                f"step {trainer.global_step:,}{of}, epoch {trainer.current_epoch}, {rate}, {left}"
                f"{'; ' if numbers else ''}{numbers}",
                flush=True,
            )

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints the line of a validation."""
        self._evaluated(trainer, "validation", trainer.num_val_batches, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints the line of a test."""
        self._evaluated(trainer, "test", trainer.num_test_batches, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints the line of a prediction."""
        self._evaluated(trainer, "prediction", trainer.num_predict_batches, batch_idx, dataloader_idx)

    def _evaluated(
        self, trainer: lightning.Trainer, what: str, batches: Sequence[int | float], batch: int, dataset: int
    ) -> None:
        if self._due(trainer):
            print(f"{what}: batch {sum(batches[:dataset]) + batch + 1:g} of {sum(batches):g}", flush=True)

    def _due(self, trainer: lightning.Trainer) -> bool:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.said < EVERY_S:
            return False
        self.said = now
        return True


def share_done(trainer: lightning.Trainer, batches: int) -> float:
    """Share of a run that is done, by whichever limit comes first: steps, epochs or generated tokens; 0 without any.

    Args:
        trainer: Trainer of the run.
        batches: Batches done of the running epoch.
    """
    shares = [0.0]
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    epochs, size = trainer.max_epochs or -1, trainer.num_training_batches
    if epochs > 0 and 0 < size < float("inf"):
        shares.append((trainer.current_epoch + batches / size) / epochs)
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    shares += [each.generated / each.tokens for each in callbacks if isinstance(each, TokenBudget)]
    return min(1.0, max(shares))


def ending(trainer: lightning.Trainer, folder: Path, seconds: float) -> str:
    """What a finished run says: how far it came, where it is, and how to go on.

    Args:
        trainer: Trainer of the run.
        folder: Folder of the run.
        seconds: Time that training took.
    """
    said = [f"finished: {trainer.global_step:,} steps in {duration(seconds)}; run folder {folder}"]
    last = folder / "checkpoints" / "last.ckpt"
    config = shlex.quote(str(folder / "config.yaml"))
    if not last.exists():
        return said[0]
    if 0 < trainer.max_steps <= trainer.global_step:
        more = f"--trainer.max_steps {2 * trainer.max_steps}"
    else:
        more = f"--trainer.max_epochs {max(trainer.current_epoch, 1) + 1}"
    said.append(f"  go on:    {program()} fit -c {config} --ckpt_path last {more}")
    if trainer.enable_validation:
        said.append(f"  validate: {program()} validate -c {config} --ckpt_path {shlex.quote(str(last))}")
    return "\n".join(said)
