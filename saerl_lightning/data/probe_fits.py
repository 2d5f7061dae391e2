"""Fits that predict a number about a prompt from its feature row: ridge, elastic net, boosted trees.

Pure functions over matrices and labels; sparse rows stay sparse. Penalties are chosen by cross-validation inside the labels
that a fit is given, so predictions of `out_of_fold` have seen nothing of their own label, the choice of the penalty included.
Rows of one family (a prompt, its copies and its duplicates) share a fold: one would give the other's label away.
What the labels mean, and which prompts have one, is not known here. n labelled rows, N rows, F columns.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.features import (
    blocks,
    column_count,
    columns_first,
    deviation,
    divided,
    float64,
    plain,
    row_count,
)
from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

TUNED_ON = 2_000  # labels that penalties are chosen on, at most
PENALTIES = 12  # elastic net: penalties tried for each l1 ratio, from the largest useful one down to a hundredth of it


Split = tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]  # rows to fit, rows held out


class Fit(ABC):
    """A fitted probe."""

    @abstractmethod
    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts the label of every row."""

    @property
    @abstractmethod
    def nonzero(self) -> int:
        """Feature columns that take part."""


@dataclass(frozen=True)
class LinearFit(Fit):
    """weights . z + intercept."""

    weights: Float[np.ndarray, " F"]
    intercept: float

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts block by block, so that no second copy of the features is made."""
        return _by_block(lambda block: block @ self.weights, features) + self.intercept

    @property
    def nonzero(self) -> int:
        """Columns whose weight is not 0."""
        return int(np.count_nonzero(self.weights))

    def without(self, columns: Int[np.ndarray, " k"]) -> LinearFit:
        """The same fit, blind to some columns."""
        weights = self.weights.copy()
        weights[columns] = 0.0
        return LinearFit(weights, self.intercept)


@dataclass(frozen=True)
class TreeFit(Fit):
    """A sum of regression trees, as a LightGBM booster."""

    booster: Any

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts block by block."""
        return _by_block(lambda block: self.booster.predict(plain(block), num_threads=1), features)

    @property
    def nonzero(self) -> int:
        """Columns that some tree splits on."""
        return int(np.count_nonzero(self.booster.feature_importance()))


FitLabels = Callable[["Features", Float[np.ndarray, " n"], Int[np.ndarray, " n"]], Fit]


@dataclass(frozen=True)
class CrossFit:
    """A probe fitted to all labels, and for each fold to the labels of the other folds.

    Attributes:
        whole: fit to all labels.
        others: fit to the labels outside each fold, by fold.
        fold: (N,); the fold whose labels must not rate this row, because one of its family is in there. -1 where none is.
    """

    whole: Fit
    others: tuple[Fit, ...]
    fold: Int[np.ndarray, " N"]

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Rates every row by a fit that has not seen the label of the row or of its family.

        A probe without a weight rates all rows alike.
        """
        predicted = self.whole.predict(features)
        for fold, fit in enumerate(self.others if self.whole.nonzero else ()):
            rows = np.flatnonzero(self.fold == fold)
            predicted[rows] = fit.predict(features[rows])
        return predicted


def cross_fit(
    fit: FitLabels,
    features: Features,
    rows: Int[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    families: Int[np.ndarray, " N"],
    folds: int,
    seed: int,
) -> CrossFit:
    """Fits all labels, and once a fold the labels of the other folds.

    Args:
        fit: fits rows (n, F), their labels (n,) and their families (n,).
        features: (N, F).
        rows: the labelled rows, (n,).
        labels: their labels, (n,).
        families: (N,); rows with equal numbers are copies or duplicates of one prompt.
        folds: number of folds.
        seed: Seed of the folds.

    Raises:
        InputError: if there are fewer labelled families than folds, or all labels are the same.
    """
    known, own = features[rows], families[rows]
    require_learnable(labels, own, folds)
    dealt = fold_of(labels, folds, seed, own)
    rest = [np.flatnonzero(dealt != fold) for fold in range(folds)]
    others = tuple(fit(known[kept], labels[kept], own[kept]) for kept in rest)
    labelled, first = np.unique(own, return_index=True)
    place = np.searchsorted(labelled, families).clip(max=len(labelled) - 1)
    fold = np.where(labelled[place] == families, dealt[first][place], -1)
    return CrossFit(fit(known, labels, own), others, fold)


def fit_ridge(
    features: Features,
    labels: Float[np.ndarray, " n"],
    alphas: Sequence[float],
    folds: int,
    seed: int,
    families: Int[np.ndarray, " n"] | None = None,
) -> LinearFit:
    """Fits least squares with a squared penalty.

    Args:
        features: (n, F); sparse rows are neither centred nor scaled, so they stay sparse.
        labels: (n,); labels that are all the same give that constant.
        alphas: penalties to try, in units of the columns' summed variance: at 1 an average direction of n rows in general
            position is shrunk by half, whatever the features' scale and number.
        folds: Folds of the cross-validation that chooses the penalty by squared error.
        seed: Seed of the folds.
        families: (n,); rows of one family share a fold. None: every row is its own.
    """
    if _constant(labels):
        return _constant_fit(features, labels)
    rows = float64(features)
    unit = float((deviation(rows) ** 2).sum()) or 1.0
    sample = _sample(len(labels), seed)
    splits = list(_splits(labels[sample], folds, seed, None if families is None else families[sample]))
    errors = [_squared_error(alpha * unit, rows[sample], labels[sample], splits) for alpha in alphas]
    return _ridge(rows, labels, alphas[int(np.argmin(errors))] * unit)


def fit_elastic_net(
    features: Features,
    labels: Float[np.ndarray, " n"],
    l1_ratios: Sequence[float],
    folds: int,
    seed: int,
    families: Int[np.ndarray, " n"] | None = None,
) -> LinearFit:
    """Fits least squares with an absolute and a squared penalty, so that few columns get a weight.

    Columns are divided by their standard deviation and not centred, which keeps them sparse. Strength and mix of the
    penalties are those of least cross-validated error. Beyond 2,000 labels they are chosen on as many, drawn at random, and
    the strength goes down with the square root of the number, as the noise does that it must exceed.

    Args:
        features: (n, F).
        labels: (n,); labels that are all the same give that constant.
        l1_ratios: shares of the absolute penalty to try, in (0, 1].
        folds: Folds of the cross-validation.
        seed: Seed of the folds.
        families: (n,); rows of one family share a fold. None: every row is its own.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet, ElasticNetCV

    if _constant(labels):
        return _constant_fit(features, labels)
    rows = float64(features)
    scale = deviation(rows)
    scale[scale == 0] = 1.0
    rows = columns_first(divided(rows, scale))
    sample = _sample(len(labels), seed)
    search: Any = ElasticNetCV
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a penalty too weak to converge is judged like any other
        splits = list(_splits(labels[sample], folds, seed, None if families is None else families[sample]))
        best = search(l1_ratio=list(l1_ratios), alphas=PENALTIES, eps=1e-2, cv=splits, tol=1e-2)
        best.fit(columns_first(rows[sample]), labels[sample])
        strength = best.alpha_ * np.sqrt(len(sample) / len(labels))
        fit = ElasticNet(alpha=strength, l1_ratio=best.l1_ratio_, tol=1e-4, max_iter=5000).fit(rows, labels)
    return LinearFit(fit.coef_ / scale, float(fit.intercept_))


def fit_trees(features: Features, labels: Float[np.ndarray, " n"], trees: int, leaves: int, seed: int) -> TreeFit:
    """Fits gradient-boosted regression trees by LightGBM, on one thread, so that equal input gives equal trees.

    Args:
        features: (n, F).
        labels: (n,).
        trees: how many.
        leaves: of a tree, at most.
        seed: of LightGBM.
    """
    import lightgbm

    settings = {
        "objective": "regression",
        "num_leaves": leaves,
        "learning_rate": 0.05,
        "min_data_in_leaf": max(1, min(20, len(labels) // 10)),
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbose": -1,
    }
    data = lightgbm.Dataset(plain(features), labels)
    return TreeFit(lightgbm.train(settings, data, num_boost_round=trees))


def out_of_fold(
    fit: Callable[[Features, Float[np.ndarray, " n"]], Fit],
    features: Features,
    labels: Float[np.ndarray, " n"],
    folds: int,
    seed: int,
) -> Float[np.ndarray, " n"]:
    """Predicts every label by a fit to the other folds; every row is a family of its own.

    Raises:
        InputError: if there are fewer labels than folds, or all labels are the same.
    """
    require_learnable(labels, np.arange(len(labels)), folds)
    predicted = np.empty(len(labels))
    for rest, held_out in _splits(labels, folds, seed):
        predicted[held_out] = fit(features[rest], labels[rest]).predict(features[held_out])
    return predicted


def fold_of(
    labels: Float[np.ndarray, " n"], folds: int, seed: int, families: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Deals families of rows into folds at random, the largest first, as many families to each fold as can be.

    Labels of 0 and 1 are spread evenly over the folds. Without families every row is its own.
    """
    own = np.arange(len(labels)) if families is None else np.unique(families, return_inverse=True)[1]
    size = np.bincount(own)
    order = np.random.default_rng(seed).permutation(len(size))
    if np.isin(labels, (0.0, 1.0)).all():
        ones = np.bincount(own, weights=labels) / size
        order = order[np.argsort(ones[order], kind="stable")]
    order = order[np.argsort(-size[order], kind="stable")]
    fold = np.empty(len(size), dtype=np.int64)
    fold[order] = np.arange(len(size)) % folds
    return fold[own]


def _splits(
    labels: Float[np.ndarray, " n"], folds: int, seed: int, families: Int[np.ndarray, " n"] | None = None
) -> Iterator[Split]:
    count = len(labels) if families is None else len(np.unique(families))
    fold = fold_of(labels, min(folds, count), seed, families)
    for held_out in range(fold.max() + 1):
        yield np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)


def require_learnable(labels: Float[np.ndarray, " n"], families: Int[np.ndarray, " n"], folds: int) -> None:
    """Refuses labels that no probe can learn from.

    Raises:
        InputError: if there are fewer labelled families than folds, or all labels are the same.
    """
    count = len(np.unique(families))
    if count < folds:
        prompts = "labels" if count == len(labels) else f"labels of {count} different prompts"
        raise InputError(f"{len(labels)} {prompts} for {folds} folds; label more prompts, or write fewer folds")
    if _constant(labels):
        raise InputError(f"all {len(labels)} labels are {labels[0]:g}; a probe learns only from labels that differ")


def _squared_error(alpha: float, rows: Features, labels: Float[np.ndarray, " n"], splits: Sequence[Split]) -> float:
    return sum(
        float(((_ridge(rows[rest], labels[rest], alpha).predict(rows[out]) - labels[out]) ** 2).sum())
        for rest, out in splits
    )


def _ridge(rows: Features, labels: Float[np.ndarray, " n"], alpha: float) -> LinearFit:
    from sklearn.linear_model import Ridge

    solver = "cholesky" if isinstance(rows, np.ndarray) else "sparse_cg"
    fit: Any = Ridge(alpha, solver=solver, tol=1e-4).fit(rows, labels)
    return LinearFit(np.ravel(fit.coef_), float(fit.intercept_))


def _constant(labels: Float[np.ndarray, " n"]) -> bool:
    return bool((labels == labels[0]).all())


def _constant_fit(features: Features, labels: Float[np.ndarray, " n"]) -> LinearFit:
    return LinearFit(np.zeros(column_count(features)), float(labels[0]))


def _sample(n: int, seed: int) -> Int[np.ndarray, " m"]:
    return np.random.default_rng(seed).permutation(n)[:TUNED_ON] if n > TUNED_ON else np.arange(n)


def _by_block(predict: Callable[[Any], Float[np.ndarray, " n"]], features: Features) -> Float[np.ndarray, " N"]:
    return np.concatenate([np.zeros(0), *(predict(features[block]) for block in blocks(row_count(features)))])
