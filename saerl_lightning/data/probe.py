"""Fits that predict a number about a prompt from its feature row: ridge, elastic net, boosted trees.

Pure functions over matrices and labels; sparse rows stay sparse. Penalties are chosen by cross-validation inside the labels
that a fit is given, so predictions of `out_of_fold` have seen nothing of their own label, the choice of the penalty included.
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

from saerl_lightning.data.feature_rows import (
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


def fit_ridge(
    features: Features, labels: Float[np.ndarray, " n"], alphas: Sequence[float], folds: int, seed: int
) -> LinearFit:
    """Fits least squares with a squared penalty.

    Args:
        features: (n, F); sparse rows are neither centred nor scaled, so they stay sparse.
        labels: (n,); labels that are all the same give that constant.
        alphas: penalties to try, in units of the columns' summed variance: at 1 an average direction of n rows in general
            position is shrunk by half, whatever the features' scale and number.
        folds: of the cross-validation that chooses the penalty by squared error.
        seed: of the folds.
    """
    if _constant(labels):
        return _constant_fit(features, labels)
    rows = float64(features)
    unit = float((deviation(rows) ** 2).sum()) or 1.0
    sample = _sample(len(labels), seed)
    errors = [_squared_error(alpha * unit, rows[sample], labels[sample], folds, seed) for alpha in alphas]
    return _ridge(rows, labels, alphas[int(np.argmin(errors))] * unit)


def fit_elastic_net(
    features: Features, labels: Float[np.ndarray, " n"], l1_ratios: Sequence[float], folds: int, seed: int
) -> LinearFit:
    """Fits least squares with an absolute and a squared penalty, so that few columns get a weight.

    Columns are divided by their standard deviation and not centred, which keeps them sparse. Strength and mix of the
    penalties are those of least cross-validated error. Beyond 2,000 labels they are chosen on as many, drawn at random, and
    the strength goes down with the square root of the number, as the noise does that it must exceed.

    Args:
        features: (n, F).
        labels: (n,); labels that are all the same give that constant.
        l1_ratios: shares of the absolute penalty to try, in (0, 1].
        folds: of the cross-validation.
        seed: of the folds.
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
        splits = list(_splits(labels[sample], folds, seed))
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
    """Predicts every label by a fit to the other folds.

    Raises:
        InputError: if there are fewer labels than folds, or all labels are the same.
    """
    if len(labels) < folds:
        raise InputError(f"{len(labels)} labels for {folds} folds; label more prompts, or write fewer folds")
    if _constant(labels):
        raise InputError(f"all {len(labels)} labels are {labels[0]:g}; a probe learns only from labels that differ")
    predicted = np.empty(len(labels))
    for rest, held_out in _splits(labels, folds, seed):
        predicted[held_out] = fit(features[rest], labels[rest]).predict(features[held_out])
    return predicted


def fold_of(labels: Float[np.ndarray, " n"], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Deals rows into folds at random, of equal size to one; labels of 0 and 1 are spread evenly over the folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if np.isin(labels, (0.0, 1.0)).all():
        order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _splits(
    labels: Float[np.ndarray, " n"], folds: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]]:
    fold = fold_of(labels, min(folds, len(labels)), seed)
    for held_out in range(fold.max() + 1):
        yield np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)


def _squared_error(alpha: float, rows: Features, labels: Float[np.ndarray, " n"], folds: int, seed: int) -> float:
    return sum(
        float(((_ridge(rows[rest], labels[rest], alpha).predict(rows[out]) - labels[out]) ** 2).sum())
        for rest, out in _splits(labels, folds, seed)
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
