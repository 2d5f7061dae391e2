"""What a signal is asked in `signals.py`: each task takes feature rows and gives numbers, and a prediction for every prompt.

Probes, folds, scores and intervals are the package's own; nothing is fitted here but the topic classifier. Every
prediction was made without its own label. N prompts, F columns.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from signal_measures import (
    auc,
    classifier,
    left_agreement,
    length_measures,
    mean,
    one_hot,
    rank_agreement,
    residuals,
)

from saerl_lightning.data.clustering import KMeansClusters
from saerl_lightning.data.probe_fits import fold_of, out_of_fold
from saerl_lightning.data.probes import Probe
from saerl_lightning.data.scores import (
    Interval,
    Statistic,
    agreement,
    bootstrap,
    grouping_agreement,
    partial_spearman,
    pearson,
    spearman,
)
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import Features

FOLDS = 5
CURVE = (50, 100, 200, 500, 1000, 2000, 4000)
CURVE_DRAWS = 5
TESTED_ON = 0.3  # share of the prompts that the learning curve is measured on

Contest = Callable[[np.ndarray], Statistic]  # of predictions: a statistic of how often each prompt was drawn


@dataclass(frozen=True)
class Finding:
    """What one task found out about one signal."""

    numbers: dict[str, float]
    predictions: np.ndarray  # (N,), empty where prompts get none

    @classmethod
    def of(cls, scores: Mapping[str, Interval], predictions: np.ndarray, **more: float) -> Finding:
        """Spreads scores out into the value and the two ends of its interval."""
        numbers = dict(more)
        for name, score in scores.items():
            numbers |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        return cls(numbers, predictions)


class Task(ABC):
    """A question to a signal.

    Attributes:
        name: of its folder and table.
        labels: what is predicted; part of the finding's key.
    """

    name: str
    labels: np.ndarray

    @abstractmethod
    def measure(self, features: Features) -> Finding:
        """Answers the question for one signal."""

    def contests(self) -> dict[str, Contest]:
        """Statistics by which two signals are held against each other, prompt by prompt."""
        return {}

    def key(self, signal: str) -> str:
        """Names the finding: another signal, other labels or prompts have another key."""
        return hashlib.sha256(f"2 {self.name} {signal} {self.labels.tolist()}".encode()).hexdigest()


class Topics(Task):
    """Which subject a prompt belongs to: accuracy of a linear classifier, 5-fold."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.name = "topic"
        self.labels = np.unique(topics, return_inverse=True)[1]

    def measure(self, features: Features) -> Finding:
        fold = fold_of(self.labels.astype(float) + 2, FOLDS, 0)
        correct = np.zeros(len(self.labels))
        for held_out in range(FOLDS):
            rest, out = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
            predicted = classifier(features[rest], self.labels[rest])(features[out])
            correct[out] = predicted == self.labels[out]
        scores = bootstrap({"accuracy": mean(correct)}, len(correct))
        return Finding.of(scores, correct, majority=float(np.bincount(self.labels).max() / len(correct)))

    def contests(self) -> dict[str, Contest]:
        return {"topic accuracy": mean}


class Difficulty(Task):
    """How hard a prompt is, from prompts of all subjects: 5-fold, and what is left once length and subject are known."""

    def __init__(self, name: str, probe: Probe, prompts: Sequence[Prompt]) -> None:
        self.name = name
        self.probe = probe
        self.labels = np.array([prompt.labels["difficulty"] for prompt in prompts])
        self.measures = length_measures(prompts)
        self.subjects = one_hot([prompt.topic or "" for prompt in prompts])

    def measure(self, features: Features) -> Finding:
        predicted = out_of_fold(lambda rows, labels: self.probe.fit(rows, labels), features, self.labels, FOLDS, 0)
        scores = agreement(predicted, self.labels)
        for name, known in self.known().items():
            scores[name] = partial_spearman(predicted, self.labels, known)
        return Finding.of(scores, predicted)

    def known(self) -> dict[str, np.ndarray]:
        """Covariates of the partial correlations."""
        return {
            "given_characters": self.measures[:, :1],
            "given_length": self.measures,
            "given_both": np.hstack([self.measures, self.subjects]),
        }

    def contests(self) -> dict[str, Contest]:
        said = f"difficulty, {self.name.partition(' ')[2]}"
        left = {
            f"{said}: Spearman given length": self.known()["given_length"],
            f"{said}: Spearman given length and subject": self.known()["given_both"],
        }
        return {
            f"{said}: Spearman": partial(rank_agreement, self.labels),
            **{name: left_agreement(self.labels, known) for name, known in left.items()},
        }


class Transfer(Task):
    """How hard a prompt is, from prompts of all *other* subjects: leave one subject out, predictions pooled.

    The mean label of the other subjects is high where this one is easy, so predictions that know nothing would correlate
    negatively once pooled. Correlations are therefore those of the predictions less the mean that they were fitted to.
    """

    def __init__(self, probe: Probe, prompts: Sequence[Prompt]) -> None:
        self.name = "transfer"
        self.probe = probe
        self.labels = np.array([prompt.labels["difficulty"] for prompt in prompts])
        self.subject = np.unique([prompt.topic or "" for prompt in prompts], return_inverse=True)[1]

    def measure(self, features: Features) -> Finding:
        predicted, known, within = np.zeros(len(self.labels)), np.zeros(len(self.labels)), []
        for subject in range(self.subject.max() + 1):
            rest, out = np.flatnonzero(self.subject != subject), np.flatnonzero(self.subject == subject)
            predicted[out] = self.probe.fit(features[rest], self.labels[rest]).predict(features[out])
            within.append(spearman(predicted[out], self.labels[out]))
            known[out] = self.labels[rest].mean()
        scores = agreement(predicted - known, self.labels) | {"r2": agreement(predicted, self.labels)["r2"]}
        return Finding.of(scores, predicted - known, within=float(np.mean(within)))

    def contests(self) -> dict[str, Contest]:
        return {"difficulty of an unseen subject: Spearman": partial(rank_agreement, self.labels)}


class LearningCurve(Task):
    """How many labels it takes: Spearman on the same held-out prompts, over random draws of n labels."""

    def __init__(self, probe: Probe, prompts: Sequence[Prompt]) -> None:
        self.name = "curve"
        self.probe = probe
        self.labels = np.array([prompt.labels["difficulty"] for prompt in prompts])

    def measure(self, features: Features) -> Finding:
        order = np.random.default_rng(0).permutation(len(self.labels))
        tested, rest = np.split(order, [round(TESTED_ON * len(order))])
        numbers: dict[str, float] = {}
        for n in (n for n in CURVE if n <= len(rest)):
            reached = []
            for draw in range(CURVE_DRAWS):
                rows = np.random.default_rng(draw + 1).permutation(rest)[:n]
                predicted = self.probe.fit(features[rows], self.labels[rows]).predict(features[tested])
                reached.append(spearman(predicted, self.labels[tested]))
            numbers |= {f"{n}": float(np.mean(reached)), f"{n}_sd": float(np.std(reached, ddof=1))}
        return Finding(numbers, np.zeros(0))


class Clusters(Task):
    """How far the method's clusters are the data's subjects: mean over 3 seeds, as many clusters as subjects, and 16."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.name = "clusters"
        self.prompts = prompts
        self.topics = [prompt.topic for prompt in prompts]
        self.labels = np.unique([topic or "" for topic in self.topics], return_inverse=True)[1]

    def measure(self, features: Features) -> Finding:
        plan, numbers = SamplePlan.sequential(len(self.prompts), 1), {}
        for named, count in {"as_many": int(self.labels.max()) + 1, "sixteen": 16}.items():
            grouped = [KMeansClusters(count, seed=seed).label(plan, self.prompts, features) for seed in range(3)]
            found = [grouping_agreement(labels, self.topics) for labels in grouped]
            numbers |= {f"{named}_{score}": float(np.mean([f[score] for f in found])) for score in found[0]}
        return Finding(numbers, np.zeros(0))


class Quality(Task):
    """Whether a problem was corrupted: 5-fold, each kind of corruption against all intact ones, and without length."""

    def __init__(self, probe: Probe, copies: Sequence[Prompt]) -> None:
        self.name = "quality"
        self.probe = probe
        self.labels = np.array([copy.labels["quality"] for copy in copies])
        self.kinds = np.array([copy.source.partition(":")[2] for copy in copies])
        self.measures = length_measures(copies)

    def measure(self, features: Features) -> Finding:
        predicted = out_of_fold(lambda rows, labels: self.probe.fit(rows, labels), features, self.labels, FOLDS, 0)
        scores = agreement(predicted, self.labels)
        left, wanted = residuals(predicted, self.measures), residuals(self.labels, self.measures)
        scores["auc_left"] = agreement(left, self.labels)["auc"]
        scores |= bootstrap({"pearson_left": lambda counts: pearson(left, wanted, counts)}, len(left))
        for kind in sorted(set(self.kinds) - {""}):
            seen = (self.kinds == kind) | (self.labels == 1)
            scores[f"auc_{kind}"] = agreement(predicted[seen], self.labels[seen])["auc"]
        return Finding.of(scores, predicted)

    def contests(self) -> dict[str, Contest]:
        return {
            "quality: AUC": partial(auc, self.labels),
            "quality: AUC given length": lambda predicted: auc(self.labels, residuals(predicted, self.measures)),
        }
