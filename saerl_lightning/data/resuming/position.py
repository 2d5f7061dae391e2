"""Resumes a run exactly: corrects the position of Lightning's loops in a checkpoint.

Lightning resumes correctly only from a checkpoint saved directly after a batch, before its validation. A checkpoint
saved elsewhere (at the end of an epoch, after `fit`) is rewritten as if it had been saved there. A validation that was
due and had not ended is run first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class LoopPosition:
    """Position of a run in Lightning's loops when it is saved.

    Args:
        epoch_over: Whether the last trained batch was the last of its epoch.
        batches: Number of batches in a whole epoch.
        validation_due: Whether a validation after this batch is due and has not ended.
    """

    epoch_over: bool
    batches: float
    validation_due: bool

    @classmethod
    def of(cls, trainer: Any, cut_short: bool = False) -> Self:
        """Reads the position of a trainer during `fit`.

        Args:
            trainer: Lightning trainer that runs `fit`.
            cut_short: Whether the epoch ended before its last batch, which Lightning does not know yet.
        """
        loop = trainer.fit_loop.epoch_loop
        over = loop.batch_progress.current.processed > 0 and (cut_short or loop._num_ready_batches_reached())
        return cls(over, trainer.num_training_batches, _validation_due(trainer, loop))


def _validation_due(trainer: Any, loop: Any) -> bool:
    if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.global_step:
        return False
    if trainer.validating:
        progress = loop.val_loop.batch_progress
        return not (progress.is_last_batch and progress.current.completed == progress.current.processed)
    in_hand = loop.batch_progress.current.completed < loop.batch_progress.current.processed
    return bool(in_hand and loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def move_behind_last_batch(checkpoint: dict[str, Any], place: LoopPosition) -> None:
    """Rewrites the progress of the loops in a checkpoint to the position directly after the last batch.

    Args:
        checkpoint: Checkpoint as loaded by Lightning, before the loops are restored.
        place: Position at which the checkpoint was saved.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    stepped = loops["epoch_loop.state_dict"]
    if not batch["current"]["processed"]:
        return
    last = batch["total"]["processed"] - 1
    stepped["_batches_that_stepped"] = min(stepped["_batches_that_stepped"], last)
    if place.epoch_over:
        batch["is_last_batch"] = True
        batch["current"]["processed"] = int(place.batches)
    for part in ("total", "current"):
        trained, begun = batch[part]["processed"], epoch[part]["started"]
        batch[part].update(ready=trained, started=trained, completed=trained - 1)
        epoch[part].update(ready=begun, processed=begun - 1, completed=begun - 1)
    if place.validation_due:
        for counted in loops["epoch_loop.val_loop.batch_progress"].values():
            if isinstance(counted, dict):
                counted.update(dict.fromkeys(counted, 0))


class ResumePoint:
    """Saves the position of a run in a datamodule's state, and restores it in Lightning."""

    def __init__(self) -> None:
        self.validation_due = False  # whether to validate before the first step

    def state(self, trainer: Any, cut_short: bool = False) -> dict[str, Any]:
        """Returns the position for the datamodule's state; {} without a trainer."""
        return {} if trainer is None else {"place": asdict(LoopPosition.of(trainer, cut_short))}

    def load(self, trainer: Any, state: dict[str, Any]) -> None:
        """Restores the position from the datamodule's state. Older checkpoints have none."""
        if trainer is not None and "place" in state:
            place = LoopPosition(**state["place"])
            move_behind_last_batch(trainer._checkpoint_connector._loaded_checkpoint, place)
            self.validation_due = place.validation_due

    def validate_if_due(self, trainer: Any) -> None:
        """Runs the validation that was due when the checkpoint was saved. Modules call this when training starts."""
        if not self.validation_due:
            return
        self.validation_due = False
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        with before_any_step(trainer):
            loop.run()
        trainer.training = True


@contextmanager
def before_any_step(trainer: Any) -> Iterator[None]:
    """Lets `EarlyStopping` ignore missing metrics in the block, because only training steps log some of them.

    Args:
        trainer: Lightning trainer whose callbacks are changed.
    """
    strict = [each for each in trainer.early_stopping_callbacks if each.strict]
    try:
        for each in strict:
            each.strict = False
        yield
    finally:
        for each in strict:
            each.strict = True
