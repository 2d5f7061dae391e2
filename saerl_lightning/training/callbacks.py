"""Callbacks of a run: progress bar with phases, validation at the start, predictions, budget, signals, clean end."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from saerl_lightning.cluster import slurm
from saerl_lightning.data.resuming.position import before_any_step
from saerl_lightning.errors import InputError
from saerl_lightning.files import keep_earlier
from saerl_lightning.ranges import LongCount, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.metrics import Phases

log = logging.getLogger(__name__)


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the running phase (generate, score, forward, …) beside the epoch."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Registers the bar for the module's phases."""
        super().on_train_epoch_start(trainer, *_)
        phases = _phases(trainer)
        if phases is not None and not self.is_disabled:
            phases.listener = self._show

    def on_train_end(self, *_: Any) -> None:
        """Ends the bar of training with it."""
        super().on_train_end(*_)
        self._listen_no_more(self.trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Ends all bars of a fit that was interrupted or raised, which would go on in the next fit of the module."""
        self._listen_no_more(trainer)
        for bar in (
            self._train_progress_bar,
            self._val_progress_bar,
            self._test_progress_bar,
            self._predict_progress_bar,
        ):
            if bar is not None:
                bar.close()

    def _listen_no_more(self, trainer: lightning.Trainer) -> None:
        phases = _phases(trainer)
        if phases is not None and phases.listener == self._show:
            phases.listener = None

    def _show(self, phase: str) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.set_description(f"Epoch {self.trainer.current_epoch} {phase:<9}")


def _phases(trainer: lightning.Trainer) -> Phases | None:
    """Phases of the trainer's module, if it has them."""
    phases = getattr(trainer.lightning_module, "phases", None)
    return phases if isinstance(phases, Phases) else None


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


class PredictionWriter(lightning.Callback):
    """Writes every sampled completion to `predictions.jsonl` in the run folder (one file a rank beyond the first)."""

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begins a new file, so that two runs of `predict` are not mixed; an earlier one is kept under its time."""
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
        keep_earlier(self._file(trainer))

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one line a completion."""
        with self._file(trainer).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in outputs)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says where the completions are."""
        if trainer.is_global_zero and self._file(trainer).is_file():
            print(f"completions: {self._file(trainer)}")

    @staticmethod
    def _file(trainer: lightning.Trainer) -> Path:
        rank = trainer.global_rank
        return Path(trainer.default_root_dir, f"predictions-{rank}.jsonl" if rank else "predictions.jsonl")


class TokenBudget(lightning.Callback):
    """Stops training after the step in which generated tokens reach the budget; a last validation follows.

    Tokens of all generated completions on all processes count, including groups that were replaced or had no variance.
    Tokens of evaluation do not count.

    Args:
        tokens: Budget of completion tokens over the whole run.

    Raises:
        InputError: if `tokens` is below 1.
    """

    def __init__(self, tokens: LongCount) -> None:
        self.tokens = tokens
        self.generated = 0
        require_in_range(self)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Takes no step if a resumed run has used up the budget."""
        trainer.should_stop |= self.used_up

    @property
    def used_up(self) -> bool:
        """Whether the budget is reached."""
        return self.generated >= self.tokens

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step's tokens."""
        tokens = trainer.callback_metrics.get("rollouts/generated_tokens")
        if tokens is None:
            raise InputError(
                "TokenBudget counts what GRPOModule logs, and this module logs no generated tokens; leave it out"
            )
        self.generated += int(tokens)
        trainer.should_stop |= self.used_up

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of tokens so far."""
        return {"generated": self.generated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the count of a resumed run."""
        self.generated = round(state_dict["generated"])


class CleanEnd(lightning.Callback):
    """Ends what a fit that was interrupted or raised leaves behind; Lightning calls no `teardown` then.

    Modules add it to every trainer, so that a notebook can go on after an interrupt.

    Args:
        close: Function that ends the processes of the module; by default there are none.
    """

    def __init__(self, close: Callable[[], object] = bool) -> None:
        self.close = close

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Ends the module's processes, and writes the row of a step that was taken and not logged yet."""
        for act in (self.close, partial(write_row, trainer)):
            try:
                act()
            # What ended the run must be told, and not that a logger fails for the same reason, such as a full disk.
            except Exception:
                log.warning("something could not be ended cleanly", exc_info=True)


def write_row(trainer: lightning.Trainer) -> None:
    """Logs the metrics of a step that ended in its last hooks: checkpoints are saved there, and rows written behind them.

    Args:
        trainer: Trainer whose fit is being given up.
    """
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress
    if trainer.training and batch.current.completed < batch.current.processed:
        trainer._logger_connector.on_batch_end()
        batch.increment_completed()
        trainer._logger_connector.update_train_step_metrics()


def heeded() -> tuple[int, ...]:
    """Signals that ask a run to stop; in a SLURM job also the one before the end of its time."""
    return (signal.SIGTERM, signal.SIGINT, *([slurm.BEFORE_END] if slurm.in_job() else []))


class Stopped(SystemExit):
    """Ends the process with a shell's exit code: 128 plus the signal's number, 143 for SIGTERM, 130 for Ctrl-C.

    Args:
        number: Number of the signal.
        at_once: Whether the process ends without finishing a step, unknown to the run's other processes.
    """

    def __init__(self, number: int, at_once: bool = False) -> None:
        super().__init__(128 + number)
        self.at_once = at_once
        self.signal = signal.Signals(number).name
        self.said = ""  # how far the run came, and how to go on

    def __str__(self) -> str:
        """Notebooks show it as their last line; a process ends with the code alone."""
        return self.said or self.signal


class StopSignals:
    """Records signals to stop inside `heeded`. Outside of training a signal ends the process at once."""

    def __init__(self) -> None:
        self.training = False  # True while a step can be finished first
        self.received: int | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handles the signals inside the block; does nothing in a thread, as threads receive none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in heeded()}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Installs the handlers again, because Lightning installs its own before it trains."""
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.received is not None:
            raise Stopped(number, at_once=True)
        self.received = number
        if getattr(rank_zero_only, "rank", 0) == 0:
            name = signal.Signals(number).name
            print(
                f"\n{name}: the step in hand is finished and saved; once more to end at once",
                file=sys.stderr,
                flush=True,
            )
