"""Where a checkpoint stands in Lightning's loops, and how a run goes on from there.

Lightning goes on rightly from one place only: right behind a batch, before its validation. A checkpoint that was saved
elsewhere (at an epoch's end, after `fit`) is read as if it had been saved there, and a validation that was due there and had
not ended is made first. Knows the loops' state as plain numbers, and no Lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Place:
    """Where a run stands when it is saved.

    Args:
        epoch_over: The batch trained last was the epoch's last one.
        batches: Of a whole epoch.
        validation_due: A validation follows that batch and has not ended.
    """

    epoch_over: bool
    batches: float
    validation_due: bool

    @classmethod
    def of(cls, trainer: Any, cut_short: bool = False) -> Self:
        """The place of a trainer that fits.

        Args:
            trainer: Lightning's.
            cut_short: The epoch is over before its last batch, which Lightning learns only by asking for another.
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


def settle(checkpoint: dict[str, Any], place: Place) -> None:
    """Rewrites the loops' progress in a checkpoint to what it was right behind the last batch.

    Args:
        checkpoint: As Lightning has loaded it, before the loops are restored.
        place: Where it was saved.
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
    """Where a datamodule's run was saved: goes into its state, and lets Lightning go on from there."""

    def __init__(self) -> None:
        self.validation_due = False  # before the first step

    def state(self, trainer: Any, cut_short: bool = False) -> dict[str, Any]:
        """What the datamodule's state holds of it; nothing without a trainer."""
        return {} if trainer is None else {"place": asdict(Place.of(trainer, cut_short))}

    def load(self, trainer: Any, state: dict[str, Any]) -> None:
        """Takes it from the datamodule's state; older checkpoints have none."""
        if trainer is not None and "place" in state:
            place = Place(**state["place"])
            settle(trainer._checkpoint_connector._loaded_checkpoint, place)
            self.validation_due = place.validation_due

    def validate_if_due(self, trainer: Any) -> None:
        """Makes the validation that was due where the checkpoint was saved; modules call it as training begins."""
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
    """Lets `EarlyStopping` do without numbers that only a step logs, in a validation that comes before the first one.

    Args:
        trainer: of Lightning's.
    """
    strict = [each for each in trainer.early_stopping_callbacks if each.strict]
    try:
        for each in strict:
            each.strict = False
        yield
    finally:
        for each in strict:
            each.strict = True
