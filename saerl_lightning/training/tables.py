"""Callbacks that write tables: completions, the plan's ledger, and the accuracy of every question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning
import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from saerl_lightning.data.callback import Filtering
from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.evaluation.report import SetAccuracy
from saerl_lightning.files import whole_file
from saerl_lightning.plan_page.ledger import COLUMNS, FILE, Ledger
from saerl_lightning.plan_page.planned import MadePlan, OperationReport
from saerl_lightning.plan_page.tables import summary
from saerl_lightning.ranges import Count, CountFrom0, require_in_range
from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule

if TYPE_CHECKING:
    import pyarrow

    from saerl_lightning.data.module import PromptDataModule


COMPLETION = ["step", "uid", "prompt", "completion", "answer", "reward", "advantage", "truncated"]


class CompletionTable(lightning.Callback):
    """Logs some completions of a step: to `completions.jsonl` in the run folder, and to W&B as one table a step.

    A table is logged for the first batch, and then whenever the optimiser steps reach or pass a multiple of
    `every_n_steps`.

    Args:
        every_n_steps: Number of optimiser steps between tables.
        prompts: Number of prompts in a table, each with its whole group.
    """

    def __init__(self, every_n_steps: Count = 50, prompts: CountFrom0 = 2) -> None:
        self.every_n_steps = every_n_steps
        self.prompts = prompts
        require_in_range(self)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes the table of the present batch, if one is due."""
        if not (trainer.is_global_zero and isinstance(pl_module, GRPOModule) and pl_module.last_step):
            return
        step = trainer.global_step
        before = step - pl_module.updates_per_batch
        if before > 0 and step // self.every_n_steps == before // self.every_n_steps:
            return
        rows = completion_rows(pl_module.last_step, step, self.prompts)
        with Path(trainer.default_root_dir, "completions.jsonl").open("a") as file:
            file.writelines(json.dumps(dict(zip(COMPLETION, row, strict=True))) + "\n" for row in rows)
        for logger in trainer.loggers:
            # W&B keeps only the last table of a key, so each step has its own key.
            if isinstance(logger, WandbLogger):
                logger.log_table(f"completions/step_{step}", columns=COMPLETION, data=rows)


def completion_rows(sampled: GradedGroups, step: int, prompts: int) -> list[list[object]]:
    """Rows of the groups of a step's first `prompts` prompts, one a completion, with the columns `COMPLETION`."""
    rows: list[list[object]] = []
    group = sampled.rollouts.group_size
    assert sampled.advantages is not None
    for p, prompt in enumerate(sampled.batch.prompts[:prompts]):
        for g in range(group):
            reward, advantage = sampled.total[p, g].item(), sampled.advantages[p, g].item()
            text, cut = sampled.rollouts.texts[p * group + g], bool(sampled.rollouts.truncated[p * group + g])
            rows.append([step, prompt.uid, prompt.text, text, prompt.answer, reward, advantage, cut])
    return rows


class PlanTable(lightning.Callback):
    """Writes the plan's ledger to the run folder, and its tables to W&B if it is used.

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


QUESTIONS = "questions.parquet"
Row = tuple[str, int, str, str, float, float]  # set, step, uid, topic, level, accuracy


class QuestionTable(lightning.Callback):
    """Adds one row a question to `questions.parquet` in the run folder after every validation and test.

    The accuracy is avg@k of the question, NaN if the grader failed. `step` counts optimiser steps (batches, if a batch
    is used for several). The name of a test set has the prefix `test/`, because a validation set may have the same
    name. After a resume, existing rows are replaced.
    """

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes the validation sets' rows."""
        self._write(trainer, pl_module, "")

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes the test sets' rows."""
        self._write(trainer, pl_module, "test/")

    def _write(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, prefix: str) -> None:
        if not isinstance(pl_module, PolicyModule) or trainer.sanity_checking:
            return
        step = trainer.global_step
        if isinstance(pl_module, GRPOModule):
            step //= pl_module.updates_per_batch
        parts = gather_objects(question_rows(pl_module.evaluation.accuracy, step, prefix), trainer.world_size)
        rows = [row for part in parts for row in part]
        if rows and trainer.is_global_zero:
            add_rows(Path(trainer.default_root_dir, QUESTIONS), rows)


def question_rows(accuracy: Mapping[str, SampledAccuracy], step: int, prefix: str = "") -> list[Row]:
    """Builds one row for each question that this process has evaluated.

    Args:
        accuracy: Accuracy of each named set.
        step: Step of the evaluation.
        prefix: Prefix of the sets' names.
    """
    rows: list[Row] = []
    for name, metric in accuracy.items():
        if not metric.uids:
            continue
        columns = (metric.uids, metric.topic_of_question(), metric.level_of_question(), metric.per_question().tolist())
        rows += [(prefix + name, step, *values) for values in zip(*columns, strict=True)]
    return rows


def accuracy_of_sets(module: PolicyModule, stage: str) -> list[SetAccuracy]:
    """Collects what an evaluation that has just ended measured, from all processes.

    Args:
        module: Module that evaluated.
        stage: Prefix of its metrics' names, `val` or `test`.
    """
    parts = gather_objects(question_rows(module.evaluation.accuracy, 0), module.trainer.world_size)
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    sets = []
    for name, metric in module.evaluation.accuracy.items():
        prefix = f"{stage}/{name}/"
        estimates = {key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)}
        accuracy = np.array([row[-1] for part in parts for row in part if row[0] == name])
        sets.append(SetAccuracy(name, metric.k, estimates, accuracy))
    return sets


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a table file, replacing rows of the same set, step and question; written atomically."""
    import pyarrow.parquet as parquet

    known = parquet.read_table(path).to_pydict() if path.is_file() else {}
    older: list[Row] = list(zip(*known.values(), strict=True)) if known else []
    merged = {row[:3]: row for row in older} | {row[:3]: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as staged:
        parquet.write_table(table_of(list(merged.values())), staged)


def table_of(rows: Sequence[Row]) -> pyarrow.Table:
    """Converts the rows to an Arrow table."""
    import pyarrow

    types = {
        "set": pyarrow.string(),
        "step": pyarrow.int64(),
        "uid": pyarrow.string(),
        "topic": pyarrow.string(),
        "level": pyarrow.float64(),
        "accuracy": pyarrow.float64(),
    }
    columns = zip(*rows, strict=True)
    return pyarrow.table(
        {name: pyarrow.array(list(values), kind) for (name, kind), values in zip(types.items(), columns, strict=True)}
    )
