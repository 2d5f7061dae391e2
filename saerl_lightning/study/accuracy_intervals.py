"""The paired hierarchical bootstrap of an accuracy difference: seeds, then questions, made to cover at five seeds. Pure.

The data are crossed: every seed's run answers the same questions. Redrawing seeds and questions from the table
(`resampled_differences`) goes wrong twice. It counts the noise of single answers three times over (Owen 2007), and five
seeds have too little spread (by (S-1)/S) and too short tails (a mean of five points can't leave their range), so its 95 %
intervals cover from 85 % to 99.5 % (`benchmarks/interval_coverage.py`). Both are cured without drawing anything: a mean's
bootstrap variance is known in closed form, so what the draws get wrong is put right in it,

    error² = seed + max(question - residual, 0)

with `seed` the variance of the seeds' macro differences over S, `question` that of the questions' differences over Q and
`residual` what both hold once. The interval is ± error times the average of Student's t with S - 1 degrees of freedom and
with the questions' hundreds, weighted by their parts (Cochran & Cox): long where training's luck rules, near 1.96 where the
questions do. Satterthwaite's degrees of freedom cover as well but reject up to 7.5 % of null studies after Holm: far out,
where Holm looks, they trust five seeds too much. Interval and p-value come from the same t and always agree.
What is drawn is thought of as training seeds and questions of these sets; the sets themselves are fixed.
S seeds, Q questions of a set, J sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.study.statistics import SAME, Estimate, Parts, t_estimate

Accuracies = Mapping[str, np.ndarray]  # of each set, (S, Q)


@dataclass(frozen=True)
class ErrorParts:
    """What the squared error of a macro difference is made of, as `seeds` seeds and these questions show it."""

    seed: float  # between seeds, single answers' noise included; NaN with one seed
    question: float  # between questions, single answers' noise included
    residual: float  # single answers' noise: what a seed's run does on one question beyond both
    question_dof: float  # degrees of freedom of `question`
    seeds: int

    @property
    def error(self) -> float:
        """Standard error of the macro difference."""
        return float(np.sqrt(self.seed + max(self.question - self.residual, 0.0)))

    @property
    def shares(self) -> Parts:
        """Shares of the squared error, with degrees of freedom: the seeds' S - 1, and the questions'."""
        share = self.seed / self.error**2 if self.error > 0 else 1.0
        return (share, self.seeds - 1.0), (1 - share, self.question_dof)

    def planned(self, seeds: int, questions: float = 1.0) -> ErrorParts:
        """Gives the parts of the same study with other counts, to ask what it could find.

        Args:
            seeds: of the other study.
            questions: how many times as many questions in every set.

        Raises:
            InputError: If there are fewer than two seeds, or no questions.
        """
        if seeds < 2 or not questions > 0:
            raise InputError(
                f"a plan of {seeds} seeds and {questions:g} times the questions; write at least 2, above 0"
            )
        training = max(self.seed - self.residual, 0.0) * self.seeds / seeds
        residual = self.residual * self.seeds / (seeds * questions)
        question = max(self.question - self.residual, 0.0) / questions + residual
        return ErrorParts(training + residual, question, residual, self.question_dof * questions, seeds)


def accuracy_difference(arm: Accuracies, baseline: Accuracies, level: float = 0.95) -> tuple[Estimate, ErrorParts]:
    """Estimates by how much the macro accuracy of two arms differs: the mean over sets of the mean over questions.

    Args:
        arm: accuracy of every question in every seed's run, one array (S, Q) a set.
        baseline: of the same sets, seeds and questions in the same order.
        level: of the interval.

    Returns:
        The estimate, NaN around it with one seed, and what its error is made of.

    Raises:
        InputError: If sets or shapes differ, or a set has fewer than two questions that were graded in all runs.

    Source: crossed two-way variance: Cameron, Gelbach & Miller 2011 (10.1198/jbes.2010.07136), Owen 2007, The pigeonhole
        bootstrap (10.1214/07-AOAS122); the quantile: Cochran & Cox 1950, Experimental Designs.
    """
    tables = _differences(arm, baseline)
    parts = error_parts(tables)
    value = float(np.mean([table.mean() for table in tables]))
    seen = max(float(np.abs(table).max()) for table in tables)
    error = parts.error if parts.error > SAME * seen else float("nan")
    return t_estimate(value, error, parts.shares, parts.seeds, level), parts


def error_parts(tables: list[Float[np.ndarray, "S _"]]) -> ErrorParts:
    """Splits the squared error of the mean over sets into seeds, questions and the rest, by the two-way table's squares.

    Args:
        tables: difference of the arms for every seed and question, one (S, Q) a set.
    """
    seeds, sets = len(tables[0]), len(tables)
    nan = float("nan")
    if seeds < 2:
        return ErrorParts(nan, nan, nan, nan, seeds)
    macro = np.mean([table.mean(1) for table in tables], 0)  # (S,)
    question, residual = np.array([_question_parts(table) for table in tables]).T / sets**2  # (J,), (J,)
    own_dof = np.array([table.shape[1] - 1 for table in tables])
    spread = float(np.sum(question**2 / own_dof))
    dof = float(question.sum() ** 2 / spread) if spread > 0 else float(own_dof.sum())
    return ErrorParts(float(macro.var(ddof=1) / seeds), float(question.sum()), float(residual.sum()), dof, seeds)


def _question_parts(table: Float[np.ndarray, "S Q"]) -> tuple[float, float]:
    """Variance of a set's mean from its questions, and the part of it that is noise of single answers."""
    seeds, questions = table.shape
    by_question = table.mean(0)  # (Q,)
    rest = table - table.mean(1, keepdims=True) - by_question + table.mean()  # (S, Q)
    noise = np.sum(rest**2) / ((seeds - 1) * (questions - 1))
    return float(by_question.var(ddof=1) / questions), float(noise / (seeds * questions))


def resampled_differences(
    arm: Accuracies, baseline: Accuracies, draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Draws macro differences of the plain crossed bootstrap: seeds, then each set's questions, with replacement.

    For pictures, and to show what the closed form mends; don't take an interval's ends from its quantiles.

    Args:
        arm: as in `accuracy_difference`.
        baseline: as there.
        draws: resampled studies.
        seed: of the resampling.

    Raises:
        InputError: As there.
    """
    tables = _differences(arm, baseline)
    rng = np.random.default_rng(seed)
    seeds = len(tables[0])
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # (draws, S)
    total = np.zeros(draws)
    for table in tables:
        count = table.shape[1]
        share = rng.multinomial(count, np.full(count, 1 / count), draws) / count  # (draws, Q)
        total += np.sum(seed_share * (share @ table.T), 1)
    return total / len(tables)


def _differences(arm: Accuracies, baseline: Accuracies) -> list[np.ndarray]:
    """Arm minus baseline of every set, (S, Q), without the questions that some run has no graded answer to."""
    if not arm or set(arm) != set(baseline):
        raise InputError(f"sets {sorted(arm)} against {sorted(baseline)}; evaluate both arms on the same sets")
    tables = []
    for name in sorted(arm):
        if arm[name].ndim != 2 or arm[name].shape != baseline[name].shape or not len(arm[name]):
            raise InputError(
                f"set {name!r}: accuracies of shape {arm[name].shape} against {baseline[name].shape}; "
                "give (seeds, questions) of the seeds that both arms finished"
            )
        table = arm[name].astype(np.float64) - baseline[name]
        table = table[:, np.isfinite(table).all(0)]
        if table.shape[1] < 2:
            raise InputError(f"set {name!r}: {table.shape[1]} questions were graded in all runs; at least 2 are needed")
        tables.append(table)
    return tables
