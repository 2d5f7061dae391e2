"""KnownRates: the pass rates that `simulate` plays with, by a label of the prompts or as a run measured them.

N prompts in the pool, K of them with a measured rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saerl_lightning.data.labels import read_label
from saerl_lightning.errors import InputError
from saerl_lightning.plan_page.served import SERVED, Served
from saerl_lightning.records import Prompt

UNMEASURED = "no pass rate was measured"
PARTS = "its reward gave parts of a point, which vary less than that, and are played as right or wrong answers"
BATCHES = 2  # smallest number of batches of measured prompts: with one, nothing could be chosen


@dataclass(frozen=True)
class KnownRates:
    """Pass rates of a pool."""

    rates: Float[np.ndarray, " N"]  # NaN for prompts that are left out
    left_out: dict[int, str]  # pool row -> reason
    said: str  # what is known of them; "" if they are a label of every prompt


def labelled_rates(label: str, prompts: Sequence[Prompt]) -> KnownRates:
    """Takes the rates from a label of the prompts.

    Args:
        label: Name of a label from 0 (always right) to 100 (always wrong).
        prompts: Prompts of the pool (N).

    Raises:
        InputError: if a prompt lacks the label.
    """
    difficulty = read_label("simulate", label, prompts)
    if (lacking := int(np.isnan(difficulty).sum())) > 0:
        raise InputError(
            f"simulate.label is {label!r}, which {lacking} of {len(difficulty)} prompts lack; give prompts with measured "
            f"pass rates, or a run's {SERVED} to --rates"
        )
    return KnownRates(np.clip(1 - difficulty / 100, 0, 1), {}, "")


def measured_rates(file: str, prompts: Sequence[Prompt], batch_size: int) -> KnownRates:
    """Takes the rates that a run measured while it trained: right answers of those graded, over all its steps.

    Args:
        file: Path of the run's `served.parquet`.
        prompts: Prompts of the pool (N).
        batch_size: Number of prompts per step (P).

    Raises:
        InputError: if the file is of another pool, or has rates for fewer than two batches.
    """
    columns = Served.read(Path(file)).columns
    row_of = {uid: row for row, uid in enumerate(columns["uid"])}
    rows = np.array([row_of.get(prompt.uid, -1) for prompt in prompts], dtype=np.int64)
    if row_of and (rows < 0).all():
        raise InputError(
            f"'{file}' is of another pool: none of its {len(row_of)} prompts (first: '{next(iter(row_of))}') is among the "
            f"{len(prompts)} of data.train (first: '{prompts[0].uid}'); give the file of a run on these prompts"
        )
    right, graded = (np.where(rows < 0, 0.0, np.append(columns[name], 0.0)[rows]) for name in ("right", "graded"))
    known = graded > 0
    if known.sum() < (least := BATCHES * batch_size):
        raise InputError(
            f"'{file}' has measured pass rates of {known.sum()} of {len(prompts)} prompts, and simulate needs {least} "
            f"({BATCHES} batches of {batch_size}); give the file of a longer run, or a smaller --data.batch_size"
        )
    rates = np.where(known, right / np.maximum(graded, 1), np.nan)
    return KnownRates(rates, dict.fromkeys(np.flatnonzero(~known).tolist(), UNMEASURED), told(rates, graded))


def told(rates: Float[np.ndarray, " N"], graded: Float[np.ndarray, " N"]) -> str:
    """Tells how many prompts have a rate, by how many answers, and how much of their spread is luck.

    Args:
        rates: Measured pass rates; NaN for none.
        graded: Number of graded answers of each prompt.
    """
    known = np.isfinite(rates)
    rate, answers = rates[known], graded[known]
    middle = float(np.median(answers))
    several = answers > 1
    # Unbiased for right or wrong answers; grades between them vary less.
    luck = float(np.mean(rate[several] * (1 - rate[several]) / (answers[several] - 1))) if several.any() else np.nan
    share = min(1.0, luck / spread) if (spread := float(rate.var(ddof=1))) > 0 else 1.0
    right = rate * answers
    parts = "" if np.allclose(right, right.round(), atol=1e-6) else f"; {PARTS}"
    of_luck = "" if np.isnan(luck) else f", and {share:.0%} of the variance between the rates is luck of the answers"
    return (
        f"{known.sum():,} of {len(rates):,} prompts have a measured pass rate, by {middle:g} answers in the median "
        f"({answers.min():g} to {answers.max():g}): a rate of 0.5 is ± {np.sqrt(0.25 / middle):.2f} (1 sd){of_luck}. "
        f"{(~known).sum():,} prompts without one are left out; the run chose which were measured, and when{parts}"
    )
