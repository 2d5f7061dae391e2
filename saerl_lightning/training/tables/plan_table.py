"""PlanTable: writes the ledger of the plan that a run trains on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning
import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from saerl_lightning.data.callback import Filtering
from saerl_lightning.plan_page.ledger import COLUMNS, FILE, Ledger
from saerl_lightning.plan_page.planned import MadePlan, OperationReport
from saerl_lightning.plan_page.tables import summary
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.training.tables.served_table import write_served

if TYPE_CHECKING:
    from saerl_lightning.data.module import PromptDataModule


class PlanTable(lightning.Callback):
    """Writes the plan's ledger to the run folder, and its tables to W&B if it is used.

    With an online operation, what was served so far follows after every validation and at the end: `served.parquet` and
    the page `served.html`.

    Args:
        rows: Number of prompts of the ledger that are sent to W&B, evenly spaced over the pool; the file always has
            all.

    Raises:
        InputError: if `rows` is below 1.
    """

    def __init__(self, rows: Count = 1000) -> None:
        self.rows = rows
        require_in_range(self)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes on the first process; a resumed run has its tables in W&B already."""
        datamodule = planning(trainer)
        if not trainer.is_global_zero or datamodule is None:
            return
        run = planned_run(datamodule)
        run.ledger.write(Path(trainer.default_root_dir, FILE))
        if trainer.global_step == 0:
            log_tables(trainer.loggers, run, self.rows)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Logs the seconds of planning with the first step as `time/plan`; 0 with all other steps."""
        datamodule = planning(trainer)
        if datamodule is not None:  # every time: Lightning logs a value again until the next one comes
            pl_module.log("time/plan", datamodule.plan_seconds if trainer.global_step == 0 else 0.0)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes what was served so far, on the first process."""
        datamodule = planning(trainer)
        if trainer.is_global_zero and trainer.state.fn == "fit" and trainer.global_step > 0 and datamodule is not None:
            write_served(Path(trainer.default_root_dir), datamodule)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes what was served, also to W&B."""
        datamodule = planning(trainer)
        if trainer.is_global_zero and datamodule is not None:
            write_served(Path(trainer.default_root_dir), datamodule, trainer.loggers)


def planning(trainer: lightning.Trainer) -> PromptDataModule | None:
    """The trainer's datamodule if it makes plans; None for others, such as one of activations."""
    datamodule = getattr(trainer, "datamodule", None)
    return cast("PromptDataModule", datamodule) if hasattr(type(datamodule), "planned") else None


def planned_run(datamodule: PromptDataModule) -> MadePlan:
    """Collects the facts of a datamodule's plan for the report."""
    signals = datamodule.signals
    return MadePlan(
        datamodule.pool.prompts,
        datamodule.plan,
        datamodule.planned.digest,
        [
            OperationReport(
                slot,
                type(operation).__name__,
                operation.metrics(),
                operation.reason() if isinstance(operation, Filtering) else "",
                operation.idle(),
                operation.doubt(),
            )
            for slot, operation in datamodule.operations.items()
        ],
        None if signals is None else type(signals).__name__,
        datamodule.features,
        getattr(signals, "names", None),  # a source whose columns are words knows them
    )


def log_tables(loggers: Iterable[Logger], run: MadePlan, rows: int) -> None:
    """Sends the summary's tables and at most `rows` rows of the ledger to W&B; other loggers have no tables."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        for table in summary(run):
            named: list[str] = [column or "–" for column in table.columns]
            logger.log_table(f"plan/{table.key}", columns=named, data=[list(row) for row in table.rows])
        logger.log_table("plan/ledger", columns=COLUMNS, data=ledger_rows(run.ledger, rows))


def ledger_rows(ledger: Ledger, rows: int) -> list[list[object]]:
    """At most `rows` rows of a ledger, evenly spaced; NaN becomes None."""
    chosen = np.unique(np.linspace(0, len(ledger) - 1, min(rows, len(ledger))).astype(int))
    columns = [ledger.column(name)[chosen].tolist() for name in COLUMNS]
    return [[None if value != value else value for value in row] for row in zip(*columns, strict=True)]
