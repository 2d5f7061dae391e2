"""Scores of predictions against labels: R^2, Pearson, Spearman, AUC, partial Spearman, with bootstrap intervals.

Pure functions. Each statistic takes `counts`, how often each prompt occurs in each of D samples: a row of ones gives
the value itself, and resampled counts give bootstrap values. Ranks in a sample then need no sorting, so a thousand
bootstrap samples of exact Spearman and AUC are cheap. n labelled prompts, C covariates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

# Bootstrap samples per interval. Above 20,000 labels there are fewer, so that time stays bounded.
DRAWS = 1000
FEWEST_DRAWS = 200
DRAWN_IN_ALL = 20_000_000  # prompts over all samples of one interval
DRAWN_AT_ONCE = 500_000

Statistic = Callable[[Int[np.ndarray, "D n"]], Float[np.ndarray, " D"]]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN if there is none."""

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite([self.low, self.high]).all())


def agreement(
    predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], seed: int = 0
) -> dict[str, Interval]:
    """Scores predictions that were made without knowledge of their labels.

    Args:
        predictions: Predicted values, (n,).
        labels: Labels, (n,), not all equal.
        seed: Seed of the bootstrap. All scores use the same samples.

    Returns:
        `r2`, `pearson` and `spearman`, and `auc` if all labels are 0 or 1.
    """
    statistics: dict[str, Statistic] = {
        "r2": lambda counts: r_squared(predictions, labels, counts),
        "pearson": lambda counts: pearson(predictions, labels, counts),
        "spearman": _rank_correlation(predictions, labels),
    }
    if is_binary(labels):
        statistics["auc"] = _auc(predictions, labels)
    return bootstrap(statistics, len(labels), seed)


def partial_spearman(
    predictions: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    covariates: Real[np.ndarray, "n C"],
    seed: int = 0,
) -> Interval:
    """Computes Spearman's correlation of predictions and labels after the covariates' ranks are regressed out.

    Args:
        predictions: Predicted values, (n,).
        labels: Labels of the prompts, (n,).
        covariates: Covariates, (n, C), such as the prompt's length, or one 0/1 column per topic.
        seed: Seed of the bootstrap.

    Returns:
        The correlation; 0 if the covariates explain either side completely.
    """
    rankings = [_Ranking(column) for column in (predictions, labels, *np.asarray(covariates, dtype=np.float64).T)]

    def statistic(counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, " D"]:
        return _partial_correlation(_covariance(np.stack([ranking.ranks(counts) for ranking in rankings]), counts))

    return bootstrap({"partial": statistic}, len(labels), seed)["partial"]


def bootstrap(statistics: Mapping[str, Statistic], n: int, seed: int = 0) -> dict[str, Interval]:
    """Computes a 95 % percentile bootstrap interval of each statistic, by drawing n prompts with replacement.

    Args:
        statistics: Functions of how often every prompt was drawn. NaN values are left out of the interval.
        n: Number of prompts.
        seed: Seed of the bootstrap samples.
    """
    random = np.random.default_rng(seed)
    draws = int(np.clip(DRAWN_IN_ALL // n, FEWEST_DRAWS, DRAWS))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, draws, at_once := max(1, DRAWN_AT_ONCE // n)):
        counts = _resample_counts(random, min(at_once, draws - start), n)
        for name, statistic in statistics.items():
            parts[name].append(statistic(counts))
    once = np.ones((1, n), dtype=np.int64)
    return {
        name: Interval(float(statistic(once)[0]), *_percentile_interval(np.concatenate(parts[name])))
        for name, statistic in statistics.items()
    }


def r_squared(
    predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], counts: Int[np.ndarray, "D n"]
) -> Float[np.ndarray, " D"]:
    """Computes 1 - squared error / squared deviation from the mean. Below 0 is worse than the mean; NaN for equal labels."""
    spread = _covariance(labels[None, None], counts)[:, 0, 0]
    error = counts @ (labels - predictions) ** 2
    return 1 - np.divide(error, spread, out=np.full(len(counts), np.nan), where=spread > 0)


def pearson(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], counts: Int[np.ndarray, "D n"]
) -> Float[np.ndarray, " D"]:
    """Computes Pearson's correlation; 0 if either side is constant."""
    return _correlation(_covariance(np.stack([x, y])[:, None], counts))


def spearman(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> float:
    """Computes Spearman's rank correlation without an interval. Ties share their mean rank; 0 if a side is constant."""
    return float(_rank_correlation(x, y)(np.ones((1, len(x)), dtype=np.int64))[0]) if len(x) else 0.0


def kendall(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> float:
    """Computes Kendall's tau-b of two rankings; 0 if either is constant."""
    from scipy.stats import kendalltau

    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    tau: Any = kendalltau(x, y)
    return float(tau.statistic)


def is_binary(labels: Float[np.ndarray, " n"]) -> bool:
    """Whether every label is 0 or 1."""
    return bool(np.isin(labels, (0.0, 1.0)).all())


class _Ranking:
    """A column sorted once, so that ranks in any resample need no further sorting."""

    def __init__(self, column: Real[np.ndarray, " n"]) -> None:
        self._order = np.argsort(column, kind="stable")
        fresh = np.diff(column[self._order], prepend=np.nan) != 0  # NaN differs from everything, so the first is fresh
        self._starts = np.flatnonzero(fresh)  # first position of each distinct value
        self._group = np.empty(len(column), dtype=np.int64)
        self._group[self._order] = np.cumsum(fresh) - 1

    def ranks(self, counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, "D n"]:
        """Computes the mean rank, from 1, of each prompt's value in each sample. Equal values share a rank."""
        sizes = np.add.reduceat(counts[:, self._order], self._starts, axis=1)
        return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, self._group]


def _rank_correlation(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> Statistic:
    a, b = _Ranking(x), _Ranking(y)
    return lambda counts: _correlation(_covariance(np.stack([a.ranks(counts), b.ranks(counts)]), counts))


def _auc(predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> Statistic:
    """Estimates the probability that a prompt labelled 1 is rated above one labelled 0; ties count half (Mann-Whitney)."""
    ranking = _Ranking(predictions)

    def statistic(counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, " D"]:
        ones = counts @ labels
        pairs = ones * (counts.sum(axis=1) - ones)
        above = (counts * labels * ranking.ranks(counts)).sum(axis=1) - ones * (ones + 1) / 2
        return np.divide(above, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return statistic


def _resample_counts(random: np.random.Generator, draws: int, n: int) -> Int[np.ndarray, "D n"]:
    """Counts how often each of n prompts occurs in n draws with replacement."""
    drawn = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)


def _covariance(columns: Float[np.ndarray, "C d n"], counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, "D C C"]:
    """Sums products of deviations from the mean. Columns are equal for all samples (d = 1) or differ per sample."""
    means = (columns * counts).sum(axis=2, keepdims=True) / counts.sum(axis=1)[:, None]
    centred = columns - means  # (C, D, n)
    return np.einsum("adn,bdn->dab", centred * counts, centred, optimize=True)


def _correlation(covariance: Float[np.ndarray, "D 2 2"]) -> Float[np.ndarray, " D"]:
    scale = np.sqrt(covariance[:, 0, 0] * covariance[:, 1, 1])
    return np.clip(np.divide(covariance[:, 0, 1], scale, out=np.zeros(len(scale)), where=scale > 0), -1, 1)


def _partial_correlation(covariance: Float[np.ndarray, "D C C"]) -> Float[np.ndarray, " D"]:
    """Computes the correlation of the first two columns given the others, by the Schur complement."""
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))  # (D, C)
    scale = np.where(scale > 0, scale, 1.0)
    # Unit variances, so that `rcond` is relative to the same scale for all columns.
    unit = covariance / (scale[:, :, None] * scale[:, None])
    cross, inverse = unit[:, :2, 2:], np.linalg.pinv(unit[:, 2:, 2:], rcond=1e-10, hermitian=True)
    left = unit[:, :2, :2] - cross @ inverse @ cross.transpose(0, 2, 1)
    something = np.diagonal(left, axis1=1, axis2=2).min(axis=1) > 1e-9
    return np.where(something, _correlation(np.where(something[:, None, None], left, np.eye(2))), 0.0)


def _percentile_interval(drawn: Float[np.ndarray, " D"]) -> tuple[float, float]:
    usable = drawn[~np.isnan(drawn)]
    if not len(usable):
        return float("nan"), float("nan")
    low, high = np.quantile(usable, [0.025, 0.975])
    return float(low), float(high)


def grouping_agreement(labels: Int[np.ndarray, " M"], topics: Sequence[str | None]) -> dict[str, float]:
    """Compares clusters with topics, over the prompts that have a topic.

    Args:
        labels: Cluster of each prompt, (M,).
        topics: Topic of each prompt, (M,); None if unknown.

    Returns:
        `nmi` (normalised mutual information, arithmetic mean), `ami` (adjusted for chance) and `ari` (adjusted Rand
        index). Equal groupings give 1. Unrelated groupings give about 0 in `ami` and `ari`, while `nmi` grows with the
        number of groups. Empty if fewer than two topics occur.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    numbers: dict[str, int] = {}
    topic = np.array([-1 if t is None else numbers.setdefault(t, len(numbers)) for t in topics], dtype=np.int64)
    if len(numbers) < 2:
        return {}
    known = topic >= 0
    pair = topic[known], labels[known]
    return {
        "nmi": float(normalized_mutual_info_score(*pair)),
        "ami": float(adjusted_mutual_info_score(*pair)),
        "ari": float(adjusted_rand_score(*pair)),
    }


def cluster_sizes(cluster: Int[np.ndarray, " M"]) -> dict[str, float]:
    """Computes the number of clusters, and their smallest, median and largest size."""
    sizes = np.unique(cluster, return_counts=True)[1]
    if not len(sizes):
        return {"clusters": 0.0}
    spread = {"size_min": sizes.min(), "size_median": np.median(sizes), "size_max": sizes.max()}
    return {"clusters": float(len(sizes)), **{name: float(size) for name, size in spread.items()}}
