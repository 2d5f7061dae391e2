"""What a run says of itself without a terminal to draw on, and at its end."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Timer

from saerl_lightning.data.ordering import one_end
from saerl_lightning.errors import program
from saerl_lightning.progress import EVERY_S, duration, on_terminal, rate_text, time_left
from saerl_lightning.training.callbacks import TokenBudget
from saerl_lightning.training.grpo import GRPOModule


def lines_in_place_of_bar(trainer: lightning.Trainer) -> None:
    """Replaces a trainer's progress bar by lines, where there is no terminal; a trainer without a bar stays silent."""
    bar = trainer.progress_bar_callback
    if bar is not None and not on_terminal():
        bar.disable()
        callbacks_of(trainer).insert(0, ProgressLines())


def callbacks_of(trainer: lightning.Trainer) -> list[Any]:
    """The trainer's callbacks, which Lightning does not declare."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


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


class RunLimits(lightning.Callback):
    """Says which limit ends the run where it is not the number of steps that was asked for.

    It also counts the steps of this fit, as a resumed run may have none left to take.
    """

    def __init__(self) -> None:
        self.first_step: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Prints the line before the first step."""
        self.first_step = trainer.global_step
        if trainer.is_global_zero and (said := ends_before_its_steps(trainer)):
            print(said, flush=True)
        if trainer.is_global_zero and isinstance(pl_module, GRPOModule):
            end = one_end(pl_module.prompts.plan, pl_module.planned_batches(), pl_module.updates_per_batch)
            if end:
                print(f"warning: {end}", flush=True)

    def took_steps(self, trainer: lightning.Trainer) -> bool:
        """Whether this fit has taken a step."""
        return self.first_step is not None and trainer.global_step > self.first_step


def steps_of_epochs(trainer: lightning.Trainer) -> int | None:
    """Optimiser steps after which `trainer.max_epochs` ends the run; None where it does not."""
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or batches == float("inf"):
        return None
    updates = getattr(trainer.lightning_module, "updates_per_batch", 1)
    return epochs * math.ceil(batches / trainer.accumulate_grad_batches) * updates


def ended_by_epochs(trainer: lightning.Trainer) -> bool:
    """Whether `trainer.max_epochs` is reached; an epoch that something else ended early counts as one for Lightning alone."""
    planned = getattr(getattr(trainer, "datamodule", None), "planned", None)
    over = trainer.fit_loop.epoch_loop._num_ready_batches_reached() or getattr(planned, "cut_short", False)
    return trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch and over


def ends_before_its_steps(trainer: lightning.Trainer) -> str | None:
    """Tells that epochs will end the run before the steps that were asked for; None where they won't.

    Args:
        trainer: Trainer of the run, whose data is set up.
    """
    steps = steps_of_epochs(trainer)
    if steps is None or not trainer.global_step < steps < trainer.max_steps:
        return None
    passes = "1 pass" if trainer.max_epochs == 1 else f"{trainer.max_epochs} passes"
    # Groups without variance are replaced by groups of prompts that further steps would have had.
    most = "at most " if getattr(trainer.lightning_module, "dynamic_sampling", None) else ""
    return (
        f"trainer.max_epochs {trainer.max_epochs} ends this run after {most}{steps:,} steps ({passes} over the data), before "
        f"trainer.max_steps {trainer.max_steps}; for further passes write --trainer.max_epochs -1"
    )


def nothing_left(trainer: lightning.Trainer) -> str:
    """Tells why a resumed run had no step left to take.

    Args:
        trainer: Trainer of the run, whose fit has ended.
    """
    said = f"no step was left to take: the checkpoint has {trainer.global_step:,}, and "
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"{said}trainer.max_steps is {trainer.max_steps}"
    if ended_by_epochs(trainer):
        return (
            f"{said}trainer.max_epochs {trainer.max_epochs} ends the run there; for further passes over the data write "
            "--trainer.max_epochs -1"
        )
    for each in callbacks_of(trainer):
        if isinstance(each, TokenBudget) and each.used_up:
            return f"{said}the {each.tokens:,} tokens of TokenBudget are used up; give it more"
        if isinstance(each, Timer) and (each.time_remaining() or 0.0) < 0:
            return f"{said}trainer.max_time is over; give it more"
    return f"{said}a callback ends the run there"


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
    shares += [each.generated / each.tokens for each in callbacks_of(trainer) if isinstance(each, TokenBudget)]
    return min(1.0, max(shares))


def ending(trainer: lightning.Trainer, folder: Path, seconds: float) -> str:
    """What a finished run says: how far it came, where it is, and how to go on.

    Args:
        trainer: Trainer of the run.
        folder: Folder of the run.
        seconds: Time that training took.
    """
    limits = [each for each in callbacks_of(trainer) if isinstance(each, RunLimits)]
    resumed_for_nothing = trainer.global_step and not all(each.took_steps(trainer) for each in limits)
    said = [nothing_left(trainer)] if resumed_for_nothing else []
    steps = f"{trainer.global_step:,} step{'s' * (trainer.global_step != 1)}"
    said.append(f"finished: {steps} in {duration(seconds)}; run folder {folder}")
    last = folder / "checkpoints" / "last.ckpt"
    config = shlex.quote(str(folder / "config.yaml"))
    if not last.exists():
        return "\n".join(said)
    said.append(f"  go on:    {program()} fit -c {config} --ckpt_path last {further(trainer)}".rstrip())
    if trainer.enable_validation:
        said.append(f"  validate: {program()} validate -c {config} --ckpt_path {shlex.quote(str(last))}")
    return "\n".join(said)


def further(trainer: lightning.Trainer) -> str:
    """Flags with which a finished run goes on: those of every limit that would end it at once or soon.

    Args:
        trainer: Trainer of the run.
    """
    wanted, flags = trainer.max_steps, []
    if 0 < trainer.max_steps <= trainer.global_step:
        wanted = 2 * trainer.max_steps
        flags.append(f"--trainer.max_steps {wanted}")
    epochs = steps_of_epochs(trainer)
    if wanted <= 0 and ended_by_epochs(trainer):
        flags.append(f"--trainer.max_epochs {trainer.current_epoch + 1}")
    elif epochs is not None and (epochs < wanted or ended_by_epochs(trainer)):
        flags.append("--trainer.max_epochs -1")
    return " ".join(flags)
