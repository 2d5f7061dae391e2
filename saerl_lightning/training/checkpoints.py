"""Checkpoints of a run: when they are saved, never with NaN, and how the files are written atomically with their digests.

A checkpoint holds the policy and its settings (`training/policy_module.py`), the place in the plan (`data/serving.py`), the
random states (`training/rng.py`), and Lightning's loops and optimisers, corrected on resume by `data/resuming/position.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from saerl_lightning.data.resuming.position import LoopPosition
from saerl_lightning.errors import RunStopped
from saerl_lightning.files import whole_file, write_whole
from saerl_lightning.policy.sharding import read_shards
from saerl_lightning.policy.weights import digests_file, known_digests, own_part, require_undamaged
from saerl_lightning.ranks import processes
from saerl_lightning.run_folder import RunFolder
from saerl_lightning.training.callbacks import Stopped, StopSignals


class RunCheckpoint(ModelCheckpoint):
    """Saves every n steps, after the last step of every epoch and of the run, and when a signal asks the run to stop.

    It saves right after a step and before its validation, where Lightning resumes correctly, and once more at the end
    if a validation came later. Weights with NaN or infinity are never saved. If the best checkpoints by a metric of
    validation are kept (`monitor: val/…`), each is judged when it is validated, because between validations the metric
    is that of older weights.
    """

    signals: StopSignals | None = None  # set by the command line
    _validation_due = False  # whether a validation was due at the last save
    _steps_before_batch = 0  # optimiser steps when the last batch began

    @property
    def state_key(self) -> str:
        """Key without the settings, so that a resumed run may save more or less often."""
        return type(self).__name__

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Marks in the run folder that training begins; from here on a signal waits for the end of a step."""
        super().on_train_start(trainer, pl_module)
        folder = RunFolder(Path(trainer.default_root_dir))
        if trainer.is_global_zero and folder.holds_run:
            folder.mark()
        if self.signals is not None:
            self.signals.training = True
            self.signals.listen()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step, to tell whether a batch that raises has changed the weights."""
        self._steps_before_batch = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if a save is due, after the last step of an epoch or run, and before a signal ends the run."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # The last checkpoint does not wait for a validation.
        if ends_here(trainer) or self._defer_save_until_validation:
            self._save_if_new(trainer)
            self._defer_save_until_validation = False
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Ends a validation on a signal; a resumed run repeats it. Several processes complete it first."""
        if trainer.world_size == 1 and trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keeps the validated checkpoint if it is among the best; ends a run of several processes on a signal."""
        if self._by_validation:
            self._judge(trainer)
        else:
            super().on_validation_end(trainer, pl_module)
        if trainer.world_size > 1 and trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Keeps this process alive when the others end, so that it can report; on an immediate stop, ends them."""
        super().on_exception(trainer, pl_module, exception)
        processes.watch_no_more()
        if isinstance(exception, Stopped) and exception.at_once:
            processes.end(trainer, grace=0)

    def _should_save_on_exception(self, trainer: lightning.Trainer) -> bool:
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        half_done = batch.processed < batch.started and trainer.global_step > self._steps_before_batch
        return super()._should_save_on_exception(trainer) and not half_done

    def _judge(self, trainer: lightning.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.global_step or getattr(trainer, "fast_dev_run", 0):
            return
        candidates = self._monitor_candidates(trainer)
        super()._save_topk_checkpoint(trainer, candidates)
        if self._last_checkpoint_saved != self.last_model_path:
            self._save_last_checkpoint(trainer, candidates)

    @property
    def _by_validation(self) -> bool:
        return self.monitor is not None and self.monitor.startswith("val/")

    def _save_topk_checkpoint(self, trainer: lightning.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not self._by_validation:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves later training, and that the last validation is done."""
        if self.signals is not None:
            self.signals.training = False
        if self._validation_due and trainer.global_step:
            self._last_global_step_saved = -1
        self._save_if_new(trainer)

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        """Saves and ends the run on every process if any process received a signal.

        Raises:
            Stopped: with the signal; of several signals, the one with the largest number.
        """
        if self.signals is None:
            return
        own = torch.tensor(self.signals.received or 0, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(own, reduce_op="max"))  # pyright: ignore[reportArgumentType]
        if number:
            self._save_if_new(trainer)
            raise Stopped(number)

    def _save_if_new(self, trainer: lightning.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        """Saves the checkpoint; then deletes an older run that this run replaces.

        Raises:
            RunStopped: if a weight or optimiser state is NaN or infinite; the last good checkpoint stays.
        """
        self._require_numbers(trainer)
        self._validation_due = LoopPosition.of(trainer).validation_due
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            RunFolder(Path(trainer.default_root_dir)).release_older()

    def _require_numbers(self, trainer: lightning.Trainer) -> None:
        broken = first_without_numbers(trainer)
        if trainer.strategy.reduce_boolean_decision(broken is None, all=True):
            return
        last = self._last_checkpoint_saved or trainer.ckpt_path
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise RunStopped(
            f"after step {trainer.global_step} {broken or 'a weight of another process'} holds NaN or infinity, so it is "
            f"not saved; {kept}. Lower the learning rate, or look at the last batches",
            everywhere=True,
        )


def ends_here(trainer: lightning.Trainer) -> bool:
    """Whether the step just taken is the last of its epoch or of the run."""
    loop = trainer.fit_loop.epoch_loop
    planned = getattr(getattr(trainer, "datamodule", None), "planned", None)
    return (
        0 <= trainer.max_steps <= trainer.global_step
        or trainer.should_stop
        or loop._num_ready_batches_reached()
        or getattr(planned, "cut_short", False)
    )


def first_without_numbers(trainer: lightning.Trainer) -> str | None:
    """Name of a trained tensor or optimiser state that has NaN or infinity; None if there is none."""
    held = [(name, tensor) for name, tensor in _tensors(trainer) if tensor.is_floating_point() and tensor.numel()]
    if not held:
        return None
    finite = torch.stack([own_part(tensor.detach()).isfinite().all().cpu() for _, tensor in held]).tolist()
    return next((name for (name, _), good in zip(held, finite, strict=True) if not good), None)


def _tensors(trainer: lightning.Trainer) -> Iterator[tuple[str, Tensor]]:
    names = {id(tensor): name for name, tensor in trainer.lightning_module.named_parameters()}
    yield from trainer.lightning_module.named_parameters()
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield f"the optimiser's {name} of {names.get(id(parameter), 'a weight')}", value


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint to a temporary file and renames it, which is atomic, with its digest beside it.

    The digest file also has the digests of earlier checkpoints: if the process is killed just before the rename, one of
    them fits.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves the file and its digest. Remote paths are saved by Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Files that a killed process left behind are as large as a checkpoint.
        for torn in target.parent.glob(f".{target.name}.*.writing"):
            torn.unlink(missing_ok=True)
        before = known_digests(target)[:3]
        with whole_file(target) as staged:
            with staged.open("wb") as file:
                digest = _write(checkpoint, file)
            write_whole(digests_file(target), "\n".join([digest, *before]) + "\n")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file after checking its digest.

        Raises:
            InputError: if its bytes have changed since it was written.
        """
        if "://" not in str(path):
            if (Path(path) / "meta.pt").is_file():
                return read_shards(Path(path))
            require_undamaged(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes the file and its digest."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            digests_file(Path(path)).unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> str:
    """Writes a checkpoint and returns its digest.

    Raises:
        OSError: if the disk is full; torch's own error names only a wrong file length.
    """
    sink = _Sink(file)
    try:
        torch.save(checkpoint, sink)  # pyright: ignore[reportArgumentType]
    except RuntimeError:
        if sink.failure is not None:
            raise sink.failure from None
        raise
    return sink.digest.hexdigest()


class _Sink:
    """A file that computes the digest of its content and stores the reason if a write fails."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        """Writes all bytes."""
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Flushes the file."""
        self.file.flush()
