"""A table of every question's accuracy at every evaluation, for statistics over questions: `questions.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning

from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.staging import whole_file
from saerl_lightning.training.distributed import gather_objects
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy import PolicyModule

if TYPE_CHECKING:
    import pyarrow

FILE = "questions.parquet"
Row = tuple[str, int, str, str, float, float]  # set, step, uid, topic, level, accuracy


class QuestionTable(lightning.Callback):
    """Adds a row a question to `questions.parquet` in the run folder at the end of every validation and test.

    The accuracy is avg@k of the question, NaN where the grader failed. `step` counts optimiser steps (batches, where a
    batch is used for several). A test set's name stands behind `test/`, for validation may have a set of the same name.
    After a resume, a row that is there already is replaced.
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
        parts = gather_objects(question_rows(pl_module.accuracy, step, prefix), trainer.world_size)
        rows = [row for part in parts for row in part]
        if rows and trainer.is_global_zero:
            add_rows(Path(trainer.default_root_dir, FILE), rows)


def question_rows(accuracy: Mapping[str, SampledAccuracy], step: int, prefix: str = "") -> list[Row]:
    """One row a question that this process has seen.

    Args:
        accuracy: of each named set.
        step: that the evaluation stands at.
        prefix: put before the sets' names.
    """
    rows: list[Row] = []
    for name, metric in accuracy.items():
        if not metric.uids:
            continue
        columns = (metric.uids, metric.topic_of_question(), metric.level_of_question(), metric.per_question().tolist())
        rows += [(prefix + name, step, *values) for values in zip(*columns, strict=True)]
    return rows


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a table file, in place of older rows of the same set, step and question; the file is always whole."""
    import pyarrow.parquet as parquet

    known = parquet.read_table(path).to_pydict() if path.is_file() else {}
    older: list[Row] = list(zip(*known.values(), strict=True)) if known else []
    merged = {row[:3]: row for row in older} | {row[:3]: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as staged:
        parquet.write_table(table_of(list(merged.values())), staged)


def table_of(rows: Sequence[Row]) -> pyarrow.Table:
    """The rows as a table, in the columns' order."""
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
