"""Fits that predict a label of a prompt from its feature row: ridge, elastic net, boosted trees.

Pure functions over matrices and labels; sparse rows stay sparse. Penalties are chosen by cross-validation within the
given labels, so a prediction by `out_of_fold` uses its own label nowhere, not even for the penalty. Rows of one family
(a prompt, its copies and its duplicates) share a fold, because each would reveal the other's label. n labelled rows, N
rows, F columns.
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

TUNED_ON = 2_000  # largest number of labels from which penalties are chosen
PENALTIES = 12  # elastic net: penalties per l1 ratio, from the largest useful one down to a hundredth of it


Split = tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]  # rows to fit, rows held out


class Fit(ABC):
    """A fitted probe."""

    @abstractmethod
    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts the label of every row."""

    @property
    @abstractmethod
    def nonzero(self) -> int:
        """Number of feature columns that are used."""


@dataclass(frozen=True)
class LinearFit(Fit):
    """A linear function: weights . z + intercept."""

    weights: Float[np.ndarray, " F"]
    intercept: float

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts by blocks, so that the features are not copied as a whole."""
        return _by_block(lambda block: block @ self.weights, features) + self.intercept

    @property
    def nonzero(self) -> int:
        """Number of columns whose weight is not 0."""
        return int(np.count_nonzero(self.weights))

    def without(self, columns: Int[np.ndarray, " k"]) -> LinearFit:
        """Returns the same fit with the weights of some columns set to 0."""
        weights = self.weights.copy()
        weights[columns] = 0.0
        return LinearFit(weights, self.intercept)


@dataclass(frozen=True)
class TreeFit(Fit):
    """A sum of regression trees, as a LightGBM booster."""

    booster: Any

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Predicts by blocks."""
        return _by_block(lambda block: self.booster.predict(plain(block), num_threads=1), features)

    @property
    def nonzero(self) -> int:
        """Number of columns that any tree splits on."""
        return int(np.count_nonzero(self.booster.feature_importance()))


FitLabels = Callable[["Features", Float[np.ndarray, " n"], Int[np.ndarray, " n"]], Fit]


@dataclass(frozen=True)
class CrossFit:
    """A probe fitted to all labels, and for each fold to the labels of the other folds.

    Attributes:
        whole: Fit to all labels.
        others: Fits to the labels outside each fold, by fold.
        fold: For each row, (N,), the fold that contains its family's labels, and whose labels must not rate it; -1 for
            none.
    """

    whole: Fit
    others: tuple[Fit, ...]
    fold: Int[np.ndarray, " N"]

    def predict(self, features: Features) -> Float[np.ndarray, " N"]:
        """Rates every row by a fit that has not seen the label of the row or of its family.

        If all weights are 0, all rows get the same rating.
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
    """Fits all labels, and for each fold the labels of the other folds.

    Args:
        fit: Function that fits rows (n, F) to their labels (n,), given their families (n,).
        features: Feature rows, (N, F).
        rows: Labelled rows, (n,).
        labels: Labels of the labelled rows, (n,).
        families: Family of every row, (N,). Rows of one family are copies or duplicates of one prompt.
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds.

    Raises:
        InputError: if there are fewer labelled families than folds, or all labels are equal.
    """
    known, own = features[rows], families[rows]
    require_learnable(labels, own, folds)
    fold_of_row = fold_of(labels, folds, seed, own)
    rest = [np.flatnonzero(fold_of_row != fold) for fold in range(folds)]
    others = tuple(fit(known[kept], labels[kept], own[kept]) for kept in rest)
    labelled, first = np.unique(own, return_index=True)
    place = np.searchsorted(labelled, families).clip(max=len(labelled) - 1)
    fold = np.where(labelled[place] == families, fold_of_row[first][place], -1)
    return CrossFit(fit(known, labels, own), others, fold)


def fit_ridge(
    features: Features,
    labels: Float[np.ndarray, " n"],
    alphas: Sequence[float],
    folds: int,
    seed: int,
    families: Int[np.ndarray, " n"] | None = None,
) -> LinearFit:
    """Fits least squares with a squared penalty (ridge regression).

    Args:
        features: Labelled feature rows, (n, F). They are neither centred nor scaled, so sparse rows stay sparse.
        labels: Labels, (n,). If all are equal, the fit is constant.
        alphas: Penalties to try, in units of the summed variance of the columns. A penalty of 1 halves the coefficient
            of an average direction, for any scale and number of features.
        folds: Number of folds of the cross-validation that chooses the penalty by squared error.
        seed: Seed of the folds.
        families: Family of each row, (n,). Rows of one family share a fold. None: every row is its own family.
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
    """Fits least squares with an absolute and a squared penalty (elastic net), so that few columns have a weight.

    Columns are divided by their standard deviation but not centred, so sparse columns stay sparse. Strength and ratio
    of the penalties are chosen by cross-validation, on at most 2,000 random labels. With more labels, the strength
    decreases with the square root of their number, like the noise that it must exceed.

    Args:
        features: Labelled feature rows, (n, F).
        labels: Labels, (n,). If all are equal, the fit is constant.
        l1_ratios: Shares of the absolute penalty to try, in (0, 1].
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds.
        families: Family of each row, (n,). Rows of one family share a fold. None: every row is its own family.
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
        # A penalty too weak to converge gets its cross-validated error like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        splits = list(_splits(labels[sample], folds, seed, None if families is None else families[sample]))
        best = search(l1_ratio=list(l1_ratios), alphas=PENALTIES, eps=1e-2, cv=splits, tol=1e-2)
        best.fit(columns_first(rows[sample]), labels[sample])
        strength = best.alpha_ * np.sqrt(len(sample) / len(labels))
        fit = ElasticNet(alpha=strength, l1_ratio=best.l1_ratio_, tol=1e-4, max_iter=5000).fit(rows, labels)
    return LinearFit(fit.coef_ / scale, float(fit.intercept_))


def fit_trees(features: Features, labels: Float[np.ndarray, " n"], trees: int, leaves: int, seed: int) -> TreeFit:
    """Fits gradient-boosted regression trees with LightGBM, on one thread, so that results are reproducible.

    Args:
        features: Labelled feature rows, (n, F).
        labels: Labels of the rows, (n,).
        trees: Number of trees.
        leaves: Largest number of leaves of a tree.
        seed: Seed of LightGBM.
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
    """Predicts every label by a fit to the other folds. Every row is its own family.

    Raises:
        InputError: if there are fewer labels than folds, or all labels are equal.
    """
    require_learnable(labels, np.arange(len(labels)), folds)
    predicted = np.empty(len(labels))
    for rest, held_out in _splits(labels, folds, seed):
        predicted[held_out] = fit(features[rest], labels[rest]).predict(features[held_out])
    return predicted


def fold_of(
    labels: Float[np.ndarray, " n"], folds: int, seed: int, families: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Assigns families to folds at random, the largest first, with equal numbers of families per fold.

    Labels of 0 and 1 are spread evenly over the folds. Without families, every row is its own family.
    """
    own = np.arange(len(labels)) if families is None else np.unique(families, return_inverse=True)[1]
    size = np.bincount(own)
    order = np.random.default_rng(seed).permutation(len(size))
    if np.isin(labels, (0.0, 1.0)).all():
        ones = np.bincount(own, weights=labels) / size
        order = order[np.argsort(ones[order], kind="stable")]
    # The last stable sort decides: family size first, then the share of ones, then the random order.
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
        InputError: if there are fewer labelled families than folds, or all labels are equal.
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

    # "sparse_cg" leaves sparse rows sparse; "cholesky" is exact and fast for dense ones.
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
