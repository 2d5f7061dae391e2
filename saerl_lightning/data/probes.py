"""Fits difficulty and quality probes, as configurable classes: the kind of fit, its penalties, the number of folds.

The fits are in `probe_fits.py`, the scores in `scores.py`. Every score and every rating comes from a fit that has not
seen the label of the prompt, of its copies or of its duplicates.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from jaxtyping import Float, Int
from jsonargparse.typing import lazy_instance

from saerl_lightning.data.features import row_count
from saerl_lightning.data.labels import families, read_label, require_features, sample_labelled
from saerl_lightning.data.probe_fits import (
    CrossFit,
    Fit,
    cross_fit,
    fit_elastic_net,
    fit_ridge,
    fit_trees,
    require_learnable,
)
from saerl_lightning.data.scores import Interval, agreement
from saerl_lightning.errors import InputError
from saerl_lightning.ranges import CountFrom2, Positive, PositiveShare, Range, Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

P = TypeVar("P")

Trees = Annotated[int, Range(1, 100_000)]

Folds = Annotated[int, Range(2, 1000)]


@dataclass(frozen=True)
class Prediction:
    """A probe's predictions for all prompts, and their cross-validated scores."""

    # Labelled prompts, their copies and their duplicates are rated by fits without their labels.
    values: Float[np.ndarray, " N"]
    rows: Int[np.ndarray, " n"]  # labelled prompts that the probe learned from
    scores: dict[str, Interval]  # of the labelled prompts' ratings: r2, pearson, spearman, for 0/1 labels also auc
    nonzero: int  # number of feature columns that are used

    @property
    def idle(self) -> str:
        """Why the prediction does not depend on the features; "" if it does."""
        return "" if self.nonzero else "its probe found no feature to go by (all its weights are 0)"

    @property
    def doubt(self) -> str:
        """Why the ratings may be no better than chance, by AUC or else by rank correlation; "" if they are better."""
        name, chance, called = (
            ("auc", 0.5, "AUC") if "auc" in self.scores else ("spearman", 0.0, "Spearman's correlation")
        )
        score = self.scores[name]
        if self.idle or not score.known or score.low > chance:
            return ""
        return (
            f"its probe is no better than chance: {called} is {score.value:.3f}, 95 % interval {score.low:.3f} to "
            f"{score.high:.3f}, and chance is {chance:g}; measure more labels, take another signal, or leave the slot empty"
        )

    def metrics(self) -> dict[str, float]:
        """Returns the scores and 95 % intervals: `probe/<score>`, `probe/<score>_low` and `probe/<score>_high`."""
        named = {"probe/labels": float(len(self.rows)), "probe/nonzero": float(self.nonzero)}
        for name, score in self.scores.items():
            named |= {f"probe/{name}": score.value, f"probe/{name}_low": score.low, f"probe/{name}_high": score.high}
        return named


class Probe(ABC):
    """Predicts a label from feature rows. Subclasses store their settings, `folds` and `seed`.

    Attributes:
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds and of the intervals.
    """

    folds: int
    seed: int

    @abstractmethod
    def fit(
        self, features: Features, labels: Float[np.ndarray, " n"], families: Int[np.ndarray, " n"] | None = None
    ) -> Fit:
        """Fits labelled rows, (n, F) and (n,), and chooses the penalties by cross-validation.

        Rows with equal `families` share a fold. None: every row is its own family.
        """

    def cross_fit(
        self,
        features: Features,
        rows: Int[np.ndarray, " n"],
        labels: Float[np.ndarray, " n"],
        families: Int[np.ndarray, " N"] | None = None,
    ) -> CrossFit:
        """Fits the probe to all labels, and for each fold to the labels of the other folds.

        Args:
            features: Feature rows, (N, F), finite.
            rows: Labelled rows, (n,).
            labels: Labels of the labelled rows, (n,).
            families: Family of every row, (N,): copies or duplicates of one prompt. None: every row is its own family.

        Raises:
            InputError: if there are fewer labelled families than folds, or all labels are equal.
        """
        own = np.arange(row_count(features)) if families is None else families
        return cross_fit(self.fit, features, rows, labels, own, self.folds, self.seed)

    def fit_predict(
        self,
        features: Features,
        rows: Int[np.ndarray, " n"],
        labels: Float[np.ndarray, " n"],
        families: Int[np.ndarray, " N"] | None = None,
    ) -> Prediction:
        """Rates every row by a fit that has not seen its label, and scores the ratings of the labelled rows.

        Arguments and errors are those of `cross_fit`.
        """
        fits = self.cross_fit(features, rows, labels, families)
        values = fits.predict(features)
        return Prediction(values, rows, agreement(values[rows], labels, self.seed), fits.whole.nonzero)

    def check_label(self, reader: str, label: str, prompts: Sequence[Prompt], limit: int | None, seed: int) -> None:
        """Refuses labels that `predict_label` would refuse, before features are computed.

        Arguments are those of `predict_label`.

        Raises:
            InputError: if the label is missing, constant or rarer than the folds.
        """
        values = read_label(reader, label, prompts)
        rows = sample_labelled(values, limit, seed)
        try:
            require_learnable(values[rows], families(prompts)[rows], self.folds)
        except InputError as error:
            raise InputError(f"{reader} (label {label!r}): {error}") from error

    def predict_label(
        self,
        reader: str,
        label: str,
        prompts: Sequence[Prompt],
        features: Features | None,
        limit: int | None,
        seed: int,
    ) -> Prediction:
        """Learns a label from the prompts that have it, and predicts it for all.

        Args:
            reader: Name of the class that reads the label, for messages.
            label: Name of the label, as in `Prompt.labels`.
            prompts: Prompts of the pool (N).
            features: Feature rows of the pool, (N, F).
            limit: Number of labelled prompts to learn from, drawn at random; None takes all.
            seed: Seed of the random draw.

        Raises:
            InputError: if the label is missing, constant or rarer than the folds, or a feature row is not finite.
        """
        values = read_label(reader, label, prompts)
        rows = sample_labelled(values, limit, seed)
        try:
            whole = require_features(reader, prompts, features)
            return self.fit_predict(whole, rows, values[rows], families(prompts))
        except InputError as error:
            raise InputError(f"{reader} (label {label!r}): {error}") from error


class RidgeProbe(Probe):
    """Least squares with a squared penalty (ridge regression), which uses every column.

    Args:
        alphas: Penalties to choose from by cross-validation, in units of the summed variance of the columns.
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds and of the intervals.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        alphas: Sequence[Positive] = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        folds: Folds = 5,
        seed: Seed = 0,
    ) -> None:
        if not alphas:
            raise InputError("RidgeProbe.alphas is empty; write penalties above 0")
        self.alphas = tuple(alphas)
        self.folds = folds
        self.seed = seed
        require_in_range(self)

    def fit(
        self, features: Features, labels: Float[np.ndarray, " n"], families: Int[np.ndarray, " n"] | None = None
    ) -> Fit:
        """Fits ridge regression with the penalty of lowest cross-validated error."""
        return fit_ridge(features, labels, self.alphas, self.folds, self.seed, families)


class ElasticNetProbe(Probe):
    """Least squares with an absolute and a squared penalty (elastic net), which uses few columns.

    Args:
        l1_ratios: Shares of the absolute penalty to choose from by cross-validation, in (0, 1]. The strengths follow
            from the data.
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds and of the intervals.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, l1_ratios: Sequence[PositiveShare] = (0.1, 0.5, 0.9), folds: Folds = 5, seed: Seed = 0) -> None:
        if not l1_ratios:
            raise InputError("ElasticNetProbe.l1_ratios is empty; write shares above 0, 1 at most")
        self.l1_ratios = tuple(l1_ratios)
        self.folds = folds
        self.seed = seed
        require_in_range(self)

    def fit(
        self, features: Features, labels: Float[np.ndarray, " n"], families: Int[np.ndarray, " n"] | None = None
    ) -> Fit:
        """Fits the elastic net with the penalties of lowest cross-validated error."""
        return fit_elastic_net(features, labels, self.l1_ratios, self.folds, self.seed, families)


class TreeProbe(Probe):
    """Gradient-boosted regression trees (LightGBM), a non-linear probe.

    Args:
        trees: Number of trees.
        leaves: Largest number of leaves of a tree.
        folds: Number of folds of the cross-validation that gives the scores.
        seed: Seed of the trees, the folds and the intervals.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, trees: Trees = 200, leaves: CountFrom2 = 15, folds: Folds = 5, seed: Seed = 0) -> None:
        self.trees = trees
        self.leaves = leaves
        self.folds = folds
        self.seed = seed
        require_in_range(self)

    def fit(
        self, features: Features, labels: Float[np.ndarray, " n"], families: Int[np.ndarray, " n"] | None = None
    ) -> Fit:
        """Fits the boosted trees."""
        return fit_trees(features, labels, self.trees, self.leaves, self.seed)


def _lazily(kind: type[P]) -> P:
    """Makes a lazy instance without the half second in which jsonargparse reads the source of every frame for its caller."""
    stack, here = inspect.stack, inspect.currentframe()
    inspect.stack = lambda context=1: [(here,)] * 2  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return lazy_instance(kind)
    finally:
        inspect.stack = stack


# Defaults of the operations. Lazy instances, so that recorded configurations contain their settings and flags can
# change one.
RIDGE = _lazily(RidgeProbe)
ELASTIC_NET = _lazily(ElasticNetProbe)
