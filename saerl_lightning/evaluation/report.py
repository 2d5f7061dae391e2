"""What an evaluation found: accuracy of each named set with intervals over questions, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.evaluation.metrics import measures
from saerl_lightning.files import keep_earlier, write_whole


@dataclass(frozen=True)
class SetAccuracy:
    """Accuracy on a named set of questions.

    Attributes:
        name: Name of the set.
        k: Number of samples per question.
        estimates: Estimates over the set by name: avg@k, pass@1 ..., maj@k, truncated_frac.
        per_question: Estimate avg@k of each question; NaN where the grader failed on all samples.
    """

    name: str
    k: int
    estimates: Mapping[str, float]
    per_question: Float[np.ndarray, " Q"]

    @property
    def failed(self) -> int:
        """Number of questions on which the grader failed for all samples."""
        return int(np.isnan(self.per_question).sum())

    def interval(self) -> tuple[float, float]:
        """Computes the 95 % bootstrap interval of avg@k over questions."""
        return bootstrap_interval(self.per_question)


def accuracy_table(sets: Sequence[SetAccuracy]) -> Table:
    """Builds the table that `test` and `validate` print: one row a set, and one for their mean if there are several."""
    table = Table(title="accuracy, 95 % intervals over questions", box=SIMPLE_HEAD)
    failed = ["not graded"] if any(each.failed for each in sets) else []
    for column in ("set", "questions", "avg@k", "pass@k", "maj@k", "truncated", *failed):
        table.add_column(column, justify="left" if column == "set" else "right")
    for each in sets:
        average, *others = [_share(each.estimates[name]) for name in _shown(each.k)]
        low, high = (_share(end) for end in each.interval())
        counts = [str(each.failed)] if failed else []
        count = f"{len(each.per_question):,}"
        table.add_row(f"{each.name}, k = {each.k}", count, f"{average} [{low}, {high}]", *others, *counts)
    if len(sets) > 1:
        means = np.mean([[each.estimates[name] for name in _shown(each.k)] for each in sets], axis=0)
        table.add_section()
        table.add_row("mean of the sets", "", *(_share(value) for value in means))
    return table


def write_accuracy(sets: Sequence[SetAccuracy], place: Path) -> None:
    """Writes all estimates by set as JSON, with the interval of avg@k and the number of questions.

    Args:
        sets: Accuracy of each set.
        place: File to write; an earlier one is kept under its time.
    """
    keep_earlier(place)
    write_whole(place, json.dumps({each.name: _record(each) for each in sets}, indent=1) + "\n")


def _record(each: SetAccuracy) -> dict[str, Any]:
    interval = [_number(end) for end in each.interval()]
    estimates = {name: _number(value) for name, value in each.estimates.items()}
    counts = {"questions": len(each.per_question), "not_graded": each.failed, "k": each.k}
    return {**counts, **estimates, f"avg@{each.k}/interval": interval}


def _shown(k: int) -> list[str]:
    names = measures(k)
    return [names[0], *names[-3:]]  # avg@k, then pass@ the largest power of two, maj@k, truncated_frac


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
