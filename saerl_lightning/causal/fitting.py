"""The probes that the causal tests try, fitted on sums whose difficulty was measured, and what edits do to their word.

It fits and rates; which edits are made, and what follows, is the tests' own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float

from saerl_lightning.causal.changes import mean_change
from saerl_lightning.causal.subject import Measured, Subject, measure, prompts
from saerl_lightning.causal.sums import Question, draw
from saerl_lightning.data.probe_fits import LinearFit, out_of_fold
from saerl_lightning.data.probes import ElasticNetProbe, Probe, RidgeProbe
from saerl_lightning.data.scores import Score, agreement
from saerl_lightning.errors import InputError
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.source import Features, SignalSource
from saerl_lightning.signals.text import LengthSignals

SAMPLES = 8  # answers a fitting sum
KINDS = ((2, 1), (2, 2), (3, 1), (3, 2))  # terms and digits of the fitting sums
# Words vary, so that the length of a text is no exact function of its sum, on which a probe's weights would run away.
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
    """A fitted probe and what it reads."""

    name: str
    signals: SignalSource
    fit: LinearFit
    spearman: Score  # of out-of-fold predictions with the labels


@dataclass(frozen=True)
class Fitting:
    """The sums that the probes are fitted on."""

    questions: list[Question]
    labels: Float[np.ndarray, " n"]  # measured difficulty, 1 - pass rate
    features: Features  # of the SAE, (n, F)
    raters: list[Rater]  # the SAE's first, then its rivals

    @property
    def spread(self) -> float:
        """Standard deviation of the labels: the unit that changes are told in."""
        return float(self.labels.std())

    @property
    def sae(self) -> LinearFit:
        """The SAE's probe."""
        return self.raters[0].fit

    def described(self) -> str:
        """What was fitted, in words."""
        told = "; ".join(f"{each.name} {interval(each.spearman)}" for each in self.raters)
        return (
            f"The probes were fitted on {len(self.labels)} other sums in five wordings, asked {SAMPLES} times each (mean "
            f"difficulty {self.labels.mean():.2f}, sd {self.spread:.2f}; {self.sae.nonzero} SAE features have a weight). "
            f"Spearman out of fold: {told}."
        )


@dataclass(frozen=True)
class Changes:
    """What K edits of n questions did, against the questions as they were, in standard deviations of the labels."""

    kinds: list[str]  # K
    predicted: dict[str, Float[np.ndarray, "K n"]]  # of the probes' d, by probe
    measured: Float[np.ndarray, "K n"]  # of 1 - pass rate
    features: Features  # of the SAE, ((1 + K) n, F), the questions as they were first

    @classmethod
    def of(
        cls,
        subject: Subject,
        fitting: Fitting,
        base: Sequence[Question],
        edits: Mapping[str, Sequence[Question]],
        samples: int,
        seed: int,
        cache: Measured,
    ) -> Changes:
        """Rates and asks the questions and all their edits."""
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

    def scores(self, seed: int) -> dict[str, dict[str, Score]]:
        """Mean change of every kind of edit: by probe, then measured."""
        columns = {**self.predicted, MEASURED: self.measured}
        return {
            kind: {name: mean_change(each[k], seed) for name, each in columns.items()}
            for k, kind in enumerate(self.kinds)
        }


def fit_probes(subject: Subject, count: int, tested: Sequence[Question], seed: int, cache: Measured) -> Fitting:
    """Measures sums that no test asks, and fits the SAE's probe and its rivals on them.

    Args:
        subject: who answers and is read.
        count: sums wanted; a kind that has no more gives fewer.
        tested: questions that must not be among them.
        seed: of the sums, the answers and the folds.
        cache: of the answers.

    Raises:
        InputError: if the model answers all sums alike, so that there is nothing to learn.
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
    """Sums of four kinds, as many of each, all different and none that a test asks, in five wordings."""
    taken, rng = {each.opening for each in tested}, random.Random(f"wordings {seed}")
    found: list[Question] = []
    for terms, digits in KINDS:
        drawn = dict.fromkeys(draw(count // 4 + len(taken), terms, digits, seed + 1))
        asked = [each.question(rng.choice(WORDINGS)) for each in drawn]
        found += [each for each in asked if each.opening not in taken][: count // 4]
    return found


def interval(score: Score) -> str:
    """A value with its interval, as a cell of a table."""
    return f"{score.value:+.2f} [{score.low:+.2f}, {score.high:+.2f}]"


def several(words: Sequence[object]) -> str:
    """Words in a row, or that there is none."""
    return ", ".join(map(str, words)) if words else "none"


def _rater(name: str, source: SignalSource, probe: Probe, rows: Features, labels: Float[np.ndarray, " n"]) -> Rater:
    held_out = out_of_fold(probe.fit, rows, labels, probe.folds, probe.seed)
    fit = cast("LinearFit", probe.fit(rows, labels))
    return Rater(name, source, fit, agreement(held_out, labels, probe.seed)["spearman"])


def change_columns(fitting: Fitting) -> list[str]:
    """Heads of a table of changes: of every probe's word, and of what was measured."""
    return [*(f"change of d: {each.name}" for each in fitting.raters), "measured change of difficulty"]


def setting(fitting: Fitting, samples: int, seed: int) -> str:
    """How the changes of a test were measured, in words."""
    return (
        f"Each was asked {samples} times at temperature 1 (seed {seed}), with the same random numbers as the sum as it was; "
        f"changes are in standard deviations of the labels, with 95 % intervals over sums. {fitting.described()}"
    )


def above_zero(score: Score) -> bool:
    """Whether the whole interval is above 0."""
    return score.low > 0


def below_zero(score: Score) -> bool:
    """Whether the whole interval is below 0."""
    return score.high < 0


def excludes_zero(score: Score) -> bool:
    """Whether the interval leaves out 0."""
    return above_zero(score) or below_zero(score)
