"""Difficulty probes of the causal tests, fitted on sums of measured difficulty, and their predictions for edited sums.

The tests choose the edits and draw the conclusions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float

from saerl_lightning.causal.changes import mean_change
from saerl_lightning.causal.subject import MeasurementCache, Subject, measure, prompts
from saerl_lightning.causal.sums import Question, draw_sums
from saerl_lightning.data.probe_fits import LinearFit, out_of_fold
from saerl_lightning.data.probes import ElasticNetProbe, Probe, RidgeProbe
from saerl_lightning.data.scores import Interval, agreement
from saerl_lightning.errors import InputError
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.source import Features, SignalSource
from saerl_lightning.signals.text import LengthSignals

SAMPLES = 8  # number of answers to each fitting sum
KINDS = ((2, 1), (2, 2), (3, 1), (3, 2))  # terms and digits of the fitting sums
# Wordings vary. With one wording, the length of a text would be an exact function of its sum, and weights of a probe on
# length would grow without bound.
WORDINGS = (
    "What is {}?",
    "Calculate {}.",
    "Find the value of {}.",
    "Work out {} and say the result.",
    "How much is {}?",
)
SAE, MEASURED = "SAE", "measured"


@dataclass(frozen=True)
class Rater:
    """A fitted probe and the signals it is applied to."""

    name: str
    signals: SignalSource
    fit: LinearFit
    spearman: Interval  # of out-of-fold predictions with the labels


@dataclass(frozen=True)
class Fitting:
    """The fitted probes, and the sums they were fitted on."""

    questions: list[Question]
    labels: Float[np.ndarray, " n"]  # measured difficulty, 1 - pass rate
    features: Features  # SAE features, (n, F)
    raters: list[Rater]  # the SAE's probe first, then those it is compared with

    @property
    def spread(self) -> float:
        """Standard deviation of the labels, the unit in which changes are reported."""
        return float(self.labels.std())

    @property
    def sae(self) -> LinearFit:
        """The probe on SAE features."""
        return self.raters[0].fit

    def described(self) -> str:
        """Describes the fitted probes in a sentence of the report."""
        told = "; ".join(f"{each.name} {interval(each.spearman)}" for each in self.raters)
        return (
            f"The probes were fitted on {len(self.labels)} other sums in five wordings, asked {SAMPLES} times each (mean "
            f"difficulty {self.labels.mean():.2f}, sd {self.spread:.2f}; {self.sae.nonzero} SAE features have a weight). "
            f"Spearman out of fold: {told}."
        )


@dataclass(frozen=True)
class Changes:
    """Changes by K edits of n questions, relative to the unedited questions, in standard deviations of the labels."""

    kinds: list[str]  # K
    predicted: dict[str, Float[np.ndarray, "K n"]]  # change of predicted difficulty, by probe
    measured: Float[np.ndarray, "K n"]  # change of 1 - pass rate
    features: Features  # SAE features, ((1 + K) n, F); first those of the unedited questions

    @classmethod
    def of(
        cls,
        subject: Subject,
        fitting: Fitting,
        base: Sequence[Question],
        edits: Mapping[str, Sequence[Question]],
        samples: int,
        seed: int,
        cache: MeasurementCache,
    ) -> Changes:
        """Predicts and measures the difficulty of the questions and of all their edits."""
        asked = [each for questions in (base, *edits.values()) for each in questions]
        names = {"as it is": base, **edits}
        rates = np.stack([measure(subject, each, samples, seed, cache, name) for name, each in names.items()])
        rows = {each.name: each.signals.features(prompts(asked)) for each in fitting.raters}
        rated = {each.name: each.fit.predict(rows[each.name]).reshape(len(names), -1) for each in fitting.raters}
        return cls(
            list(edits),
            {name: (each[1:] - each[0]) / fitting.spread for name, each in rated.items()},
            (rates[0] - rates[1:]) / fitting.spread,
            rows[SAE],
        )

    def scores(self, seed: int) -> dict[str, dict[str, Interval]]:
        """Mean change for every kind of edit: predicted by each probe, then measured."""
        columns = {**self.predicted, MEASURED: self.measured}
        return {
            kind: {name: mean_change(each[k], seed) for name, each in columns.items()}
            for k, kind in enumerate(self.kinds)
        }


def fit_probes(subject: Subject, count: int, tested: Sequence[Question], seed: int, cache: MeasurementCache) -> Fitting:
    """Measures the difficulty of sums that no test uses, and fits a probe on SAE features and others for comparison.

    Args:
        subject: Model that answers and whose activations are read.
        count: Number of sums; fewer if a kind of sum has not enough.
        tested: Questions of the tests, which must not be used for fitting.
        seed: Seed of the sums, the answers and the folds.
        cache: Cache of measured answers.

    Raises:
        InputError: if the measured difficulty of all sums is equal, so that no probe can be fitted.
    """
    questions = fitting_sums(count, tested, seed)
    labels = 1 - measure(subject, questions, SAMPLES, seed + 1, cache, "fitting sums")
    if labels.std() == 0:
        raise InputError(
            f"the difficulty of all {len(labels)} fitting sums is {labels[0]:g}, so that no probe can be fitted; take a "
            "model that answers some of them, or more of them (--fitted)"
        )
    sources: dict[str, tuple[SignalSource, Probe]] = {
        SAE: (subject.signal, ElasticNetProbe(seed=seed)),
        "hidden states": (HiddenSignals(subject.read), RidgeProbe(seed=seed)),
        "length": (LengthSignals(), RidgeProbe(seed=seed)),
    }
    rows = {name: source.features(prompts(questions)) for name, (source, _) in sources.items()}
    raters = [_rater(name, source, probe, rows[name], labels) for name, (source, probe) in sources.items()]
    return Fitting(questions, labels, rows[SAE], raters)


def fitting_sums(count: int, tested: Sequence[Question], seed: int) -> list[Question]:
    """Draws sums of four kinds in equal numbers, all different, none of a test, in five wordings."""
    taken, rng = {each.opening for each in tested}, random.Random(f"wordings {seed}")
    found: list[Question] = []
    for terms, digits in KINDS:
        drawn = dict.fromkeys(draw_sums(count // 4 + len(taken), terms, digits, seed + 1))
        asked = [each.question(rng.choice(WORDINGS)) for each in drawn]
        found += [each for each in asked if each.opening not in taken][: count // 4]
    return found


def interval(score: Interval) -> str:
    """Writes a value with its interval for a cell of a table."""
    return f"{score.value:+.2f} [{score.low:+.2f}, {score.high:+.2f}]"


def several(values: Sequence[object]) -> str:
    """Joins values by commas; "none" if there are no values."""
    return ", ".join(map(str, values)) if values else "none"


def _rater(name: str, source: SignalSource, probe: Probe, rows: Features, labels: Float[np.ndarray, " n"]) -> Rater:
    held_out = out_of_fold(probe.fit, rows, labels, probe.folds, probe.seed)
    fit = cast("LinearFit", probe.fit(rows, labels))
    return Rater(name, source, fit, agreement(held_out, labels, probe.seed)["spearman"])


def change_columns(fitting: Fitting) -> list[str]:
    """Column titles of a table of changes: one for each probe, then the measured change."""
    return [*(f"change of d: {each.name}" for each in fitting.raters), "measured change of difficulty"]


def setting(fitting: Fitting, samples: int, seed: int) -> str:
    """Describes how the changes of a test were measured, for the report."""
    return (
        f"Each was asked {samples} times at temperature 1 (seed {seed}), with the same random numbers as the sum as it was; "
        f"changes are in standard deviations of the labels, with 95 % intervals over sums. {fitting.described()}"
    )


def above_zero(score: Interval) -> bool:
    """Whether the whole interval is above 0."""
    return score.low > 0


def below_zero(score: Interval) -> bool:
    """Whether the whole interval is below 0."""
    return score.high < 0


def excludes_zero(score: Interval) -> bool:
    """Whether the interval does not contain 0."""
    return above_zero(score) or below_zero(score)
