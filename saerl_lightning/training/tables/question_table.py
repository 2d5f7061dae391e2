"""QuestionTable: writes the accuracy of every evaluation question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np

from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.evaluation.report import SetAccuracy
from saerl_lightning.files import whole_file
from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule

if TYPE_CHECKING:
    import pyarrow


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
