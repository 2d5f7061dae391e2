"""How well predictions agree with labels: R^2, Pearson, Spearman, AUC, partial Spearman, and bootstrap intervals.

Pure functions over numbers. A statistic here takes `counts`, how often each prompt stands in each of D samples: a row of
ones gives the value itself, bootstrap draws give resampled ones. Ranks in a draw then need no sorting, so a thousand draws
of exact Spearman and AUC are cheap. Nothing here fits anything. n labelled prompts, C covariates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

DRAWS = 1000  # of the bootstrap
FEWEST_DRAWS = 200
DRAWN_IN_ALL = 20_000_000  # prompts over all draws of one interval; beyond 20,000 labels there are fewer draws
DRAWN_AT_ONCE = 500_000

Statistic = Callable[[Int[np.ndarray, "D n"]], Float[np.ndarray, " D"]]


@dataclass(frozen=True)
class Score:
    """A value with the 95 % percentile interval of its bootstrap over prompts."""

    value: float
    low: float
    high: float


def agreement(predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], seed: int = 0) -> dict[str, Score]:
    """Scores predictions that were made without the labels they are held against.

    Args:
        predictions: (n,).
        labels: (n,), not all the same.
        seed: of the bootstrap; all scores see the same draws.

    Returns:
        `r2`, `pearson` and `spearman`; for labels that are all 0 or 1 also `auc`.
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
) -> Score:
    """Spearman's correlation of what is left of predictions and labels once the covariates' ranks are regressed out.

    Args:
        predictions: (n,).
        labels: (n,).
        covariates: (n, C), such as the prompt's length, or one 0/1 column a topic.
        seed: of the bootstrap.

    Returns:
        The correlation, 0 where the covariates leave nothing of either.
    """
    rankings = [_Ranking(column) for column in (predictions, labels, *np.asarray(covariates, dtype=np.float64).T)]

    def statistic(counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, " D"]:
        return _partial_correlation(_covariance(np.stack([ranking.ranks(counts) for ranking in rankings]), counts))

    return bootstrap({"partial": statistic}, len(labels), seed)["partial"]


def bootstrap(statistics: Mapping[str, Statistic], n: int, seed: int = 0) -> dict[str, Score]:
    """Puts a 95 % percentile interval around each statistic by drawing n prompts with replacement.

    Args:
        statistics: each takes how often every prompt was drawn; a draw where one is NaN is left out of its interval.
        n: prompts.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    draws = int(np.clip(DRAWN_IN_ALL // n, FEWEST_DRAWS, DRAWS))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, draws, at_once := max(1, DRAWN_AT_ONCE // n)):
        counts = _draw(random, min(at_once, draws - start), n)
        for name, statistic in statistics.items():
            parts[name].append(statistic(counts))
    once = np.ones((1, n), dtype=np.int64)
    return {
        name: Score(float(statistic(once)[0]), *_middle(np.concatenate(parts[name])))
        for name, statistic in statistics.items()
    }


def r_squared(
    predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], counts: Int[np.ndarray, "D n"]
) -> Float[np.ndarray, " D"]:
    """1 - squared error / squared deviation from the mean; below 0 is worse than the mean, NaN for equal labels."""
    spread = _covariance(labels[None, None], counts)[:, 0, 0]
    error = counts @ (labels - predictions) ** 2
    return 1 - np.divide(error, spread, out=np.full(len(counts), np.nan), where=spread > 0)


def pearson(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], counts: Int[np.ndarray, "D n"]
) -> Float[np.ndarray, " D"]:
    """Pearson's correlation; 0 where one side is constant, for a constant tells nothing apart."""
    return _correlation(_covariance(np.stack([x, y])[:, None], counts))


def spearman(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation without an interval; equal values share their mean rank, 0 where a side is constant."""
    return float(_rank_correlation(x, y)(np.ones((1, len(x)), dtype=np.int64))[0]) if len(x) else 0.0


def kendall(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> float:
    """Kendall's tau-b of two orders; 0 where either tells nothing apart."""
    from scipy.stats import kendalltau

    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    tau: Any = kendalltau(x, y)
    return float(tau.statistic)


def is_binary(labels: Float[np.ndarray, " n"]) -> bool:
    """Whether every label is 0 or 1."""
    return bool(np.isin(labels, (0.0, 1.0)).all())


class _Ranking:
    """A column sorted once, so that the ranks of any resample of it cost no further sort."""

    def __init__(self, column: Real[np.ndarray, " n"]) -> None:
        self._order = np.argsort(column, kind="stable")
        fresh = np.diff(column[self._order], prepend=np.nan) != 0  # NaN differs from everything
        self._starts = np.flatnonzero(fresh)  # where a new value begins
        self._group = np.empty(len(column), dtype=np.int64)
        self._group[self._order] = np.cumsum(fresh) - 1

    def ranks(self, counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, "D n"]:
        """Mean rank, from 1, of each prompt's value in each sample; equal values share one."""
        sizes = np.add.reduceat(counts[:, self._order], self._starts, axis=1)
        return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, self._group]


def _rank_correlation(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"]) -> Statistic:
    a, b = _Ranking(x), _Ranking(y)
    return lambda counts: _correlation(_covariance(np.stack([a.ranks(counts), b.ranks(counts)]), counts))


def _auc(predictions: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> Statistic:
    """Chance that a prompt labelled 1 is predicted above one labelled 0, a tie counting half (Mann-Whitney)."""
    ranking = _Ranking(predictions)

    def statistic(counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, " D"]:
        ones = counts @ labels
        pairs = ones * (counts.sum(axis=1) - ones)
        above = (counts * labels * ranking.ranks(counts)).sum(axis=1) - ones * (ones + 1) / 2
        return np.divide(above, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return statistic


def _draw(random: np.random.Generator, draws: int, n: int) -> Int[np.ndarray, "D n"]:
    """How often each of n prompts comes up in n draws with replacement."""
    drawn = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)


def _covariance(columns: Float[np.ndarray, "C d n"], counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, "D C C"]:
    """Sums of products of deviations from the mean; columns are one for all samples (d = 1) or one a sample."""
    means = (columns * counts).sum(axis=2, keepdims=True) / counts.sum(axis=1)[:, None]
    centred = columns - means  # (C, D, n)
    return np.einsum("adn,bdn->dab", centred * counts, centred, optimize=True)


def _correlation(covariance: Float[np.ndarray, "D 2 2"]) -> Float[np.ndarray, " D"]:
    scale = np.sqrt(covariance[:, 0, 0] * covariance[:, 1, 1])
    return np.clip(np.divide(covariance[:, 0, 1], scale, out=np.zeros(len(scale)), where=scale > 0), -1, 1)


def _partial_correlation(covariance: Float[np.ndarray, "D C C"]) -> Float[np.ndarray, " D"]:
    """Correlation of the first two columns given the others: what the Schur complement leaves of them."""
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))  # (D, C)
    scale = np.where(scale > 0, scale, 1.0)
    unit = covariance / (scale[:, :, None] * scale[:, None])  # one scale for all, so that `rcond` means one thing
    cross, inverse = unit[:, :2, 2:], np.linalg.pinv(unit[:, 2:, 2:], rcond=1e-10, hermitian=True)
    left = unit[:, :2, :2] - cross @ inverse @ cross.transpose(0, 2, 1)
    something = np.diagonal(left, axis1=1, axis2=2).min(axis=1) > 1e-9
    return np.where(something, _correlation(np.where(something[:, None, None], left, np.eye(2))), 0.0)


def _middle(drawn: Float[np.ndarray, " D"]) -> tuple[float, float]:
    usable = drawn[~np.isnan(drawn)]
    if not len(usable):
        return float("nan"), float("nan")
    low, high = np.quantile(usable, [0.025, 0.975])
    return float(low), float(high)


def grouping_agreement(labels: Int[np.ndarray, " M"], topics: Sequence[str | None]) -> dict[str, float]:
    """Compares clusters with topics over the prompts that have a topic.

    Args:
        labels: cluster of each prompt, (M,).
        topics: topic of each, None where unknown; M of them.

    Returns:
        `nmi` (normalised mutual information, arithmetic mean), `ami` (the same, adjusted for chance) and `ari` (adjusted
        Rand index): 1 for equal groupings; around 0 for unrelated ones in `ami` and `ari`, while `nmi` grows with the number
        of groups. Empty where fewer than two topics occur.
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
