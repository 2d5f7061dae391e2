"""Confidence intervals of an accuracy difference over training seeds and questions, in closed form. Pure functions.

The data are crossed: every seed's run answers the same questions. Redrawing seeds and questions from the table
(`resampled_differences`) has two faults. The noise of single answers is counted three times (Owen 2007). And five seeds
have too little spread (by a factor (S-1)/S) and too short tails: a mean of five points can't leave their range. Such 95
% intervals cover from 85 % to 99.5 % (`benchmarks/interval_coverage.py`). Here the bootstrap variance of the mean is
computed in closed form, with both faults corrected:

    error² = seed + max(question - residual, 0)

`seed` is the variance of the seeds' macro differences over S, `question` the variance of the questions' differences
over Q, and `residual` the noise of single answers, which both contain. The interval is ± error times a quantile: the
average of the quantiles of Student's t with S - 1 degrees of freedom and with those of the questions, weighted by their
shares of error² (Cochran & Cox). It is long if seeds dominate, and near 1.96 if questions do. Satterthwaite's degrees
of freedom cover as well, but reject up to 7.5 % of null studies after Holm's correction, because they are too
optimistic far out in the tail. Interval and p-value use the same t and always agree. Seeds and questions are treated as
random; the validation sets are treated as fixed.

Letters: S seeds, Q questions of a set, J sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.study.statistics import SAME, ErrorShares, Estimate, detectable_difference, t_estimate

Accuracies = Mapping[str, np.ndarray]  # by set, (S, Q)


@dataclass(frozen=True)
class VarianceComponents:
    """Variance components of a macro difference, estimated from `seeds` seeds."""

    seed: float  # variance from seeds, including noise of single answers; NaN with one seed
    question: float  # variance from questions, including noise of single answers
    residual: float  # variance from noise of single answers: the interaction of seed and question
    question_dof: float  # degrees of freedom of `question`
    seeds: int

    @property
    def error(self) -> float:
        """Standard error of the macro difference."""
        return float(np.sqrt(self.seed + max(self.question - self.residual, 0.0)))

    @property
    def shares(self) -> ErrorShares:
        """Shares of the squared error with their degrees of freedom: S - 1 for seeds, `question_dof` for questions."""
        share = self.seed / self.error**2 if self.error > 0 else 1.0
        return (share, self.seeds - 1.0), (1 - share, self.question_dof)

    def planned(self, seeds: int, questions: float = 1.0) -> VarianceComponents:
        """Predicts the components for other numbers of seeds and questions, for a power calculation.

        Args:
            seeds: Number of seeds of the planned study.
            questions: Factor by which every set has more questions; 1 keeps their number.

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
        return VarianceComponents(training + residual, question, residual, self.question_dof * questions, seeds)


def accuracy_difference(
    arm: Accuracies, baseline: Accuracies, level: float = 0.95
) -> tuple[Estimate, VarianceComponents]:
    """Estimates the difference in macro accuracy of two arms: the mean over sets of the mean over questions.

    Args:
        arm: Accuracy of every question in every seed's run, one array (S, Q) a set.
        baseline: Accuracies of the baseline arm, with equal sets, seeds and questions in equal order.
        level: Confidence level of the interval.

    Returns:
        The estimate, with NaN as its interval if there is one seed, and the variance components.

    Raises:
        InputError: If sets or shapes differ, or a set has fewer than two questions that were graded in all runs.

    Source: crossed two-way variance: Cameron, Gelbach & Miller 2011 (10.1198/jbes.2010.07136), Owen 2007, The
    pigeonhole bootstrap (10.1214/07-AOAS122); the quantile: Cochran & Cox 1950, Experimental Designs.
    """
    tables = _differences(arm, baseline)
    components = variance_components(tables)
    value = float(np.mean([table.mean() for table in tables]))
    seen = max(float(np.abs(table).max()) for table in tables)
    error = components.error if components.error > SAME * seen else float("nan")
    return t_estimate(value, error, components.shares, components.seeds, level), components


def detectable_differences(components: VarianceComponents, alpha: float) -> tuple[float, float]:
    """Computes the smallest true differences that are found four times in five: with these seeds, and with twice as many.

    Both are of planned errors. The observed error of few seeds can be far too small: if their means agree by chance,
    `seed` is below the noise of single answers that it contains.

    Args:
        components: Variance components of two seeds or more.
        alpha: Significance level of the test.
    """
    plans = [components.planned(factor * components.seeds) for factor in (1, 2)]
    found, doubled = (detectable_difference(plan.error, plan.shares, alpha=alpha) for plan in plans)
    # A study of twice the seeds holds one of these. With a handful of questions its quantile may be longer, as more of its
    # error is theirs.
    return found, min(found, doubled)


def variance_components(tables: list[Float[np.ndarray, "S _"]]) -> VarianceComponents:
    """Splits the squared error of the mean over sets into variance components, by a two-way analysis of variance.

    Args:
        tables: Difference of the arms for every seed and question, one (S, Q) a set.
    """
    seeds, sets = len(tables[0]), len(tables)
    nan = float("nan")
    if seeds < 2:
        return VarianceComponents(nan, nan, nan, nan, seeds)
    macro = np.mean([table.mean(1) for table in tables], 0)  # (S,)
    question, residual = np.array([_question_components(table) for table in tables]).T / sets**2  # (J,), (J,)
    own_dof = np.array([table.shape[1] - 1 for table in tables])
    spread = float(np.sum(question**2 / own_dof))
    dof = float(question.sum() ** 2 / spread) if spread > 0 else float(own_dof.sum())
    return VarianceComponents(
        float(macro.var(ddof=1) / seeds), float(question.sum()), float(residual.sum()), dof, seeds
    )


def _question_components(table: Float[np.ndarray, "S Q"]) -> tuple[float, float]:
    """Variance of a set's mean from its questions, and the part of it that is noise of single answers."""
    seeds, questions = table.shape
    by_question = table.mean(0)  # (Q,)
    rest = table - table.mean(1, keepdims=True) - by_question + table.mean()  # (S, Q)
    noise = np.sum(rest**2) / ((seeds - 1) * (questions - 1))
    return float(by_question.var(ddof=1) / questions), float(noise / (seeds * questions))


def resampled_differences(
    arm: Accuracies, baseline: Accuracies, draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Draws macro differences by the plain crossed bootstrap: seeds, then each set's questions, with replacement.

    For figures, and to compare with the closed form. Its quantiles are not valid interval ends.

    Args:
        arm: Accuracy of every question in every seed's run, one array (S, Q) a set.
        baseline: Accuracies of the baseline arm, with equal sets, seeds and questions in equal order.
        draws: Number of resampled studies.
        seed: Seed of the random draws.

    Raises:
        InputError: If sets or shapes differ, or a set has fewer than two questions that were graded in all runs.
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
    """Arm minus baseline for every set, (S, Q), without questions that lack a graded answer in some run."""
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
