"""What `signal_tasks.py` measures beyond the package: a topic classifier, residuals, and statistics of bootstrap draws.

A statistic takes how often each of N prompts stands in each of D draws, (D, N), and gives (D,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saerl_lightning.data.features import deviation, divided, row_count
from saerl_lightning.data.probe_fits import fold_of
from saerl_lightning.data.scores import Statistic, pearson
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import Features
from saerl_lightning.signals.text import measures

TUNED_ON = 5  # a fifth of the rows chooses the classifier's settings
SHARES = (0.03, 0.1, 0.3, 1.0, 3.0)  # penalties of the topic classifier, in units of the columns' summed variance


def classifier(rows: Features, labels: np.ndarray) -> Callable[[Features], np.ndarray]:
    """One-against-rest ridge; penalty, and whether columns are scaled, are those that do best on a fifth of the rows."""
    inner = fold_of(labels.astype(float) + 2, TUNED_ON, 1) == 0
    settings = [(share, scaled) for scaled in (False, True) for share in SHARES]
    rest, out = np.flatnonzero(~inner), np.flatnonzero(inner)
    reached = [np.mean(_ridge(rows[rest], labels[rest], *each)(rows[out]) == labels[out]) for each in settings]
    return _ridge(rows, labels, *settings[int(np.argmax(reached))])


def _ridge(rows: Features, labels: np.ndarray, share: float, scaled: bool) -> Callable[[Features], np.ndarray]:
    from sklearn.linear_model import RidgeClassifier

    scale = deviation(rows)
    scale = np.where(scale > 0, scale, 1.0) if scaled else np.ones(len(scale))
    taught = divided(rows, scale)
    solver = "cholesky" if isinstance(taught, np.ndarray) else "sparse_cg"
    unit = float((deviation(taught) ** 2).sum()) or 1.0
    fit: Any = RidgeClassifier(share * unit, solver=solver, tol=1e-3).fit(taught, labels)
    return lambda asked: fit.predict(divided(asked, scale)) if row_count(asked) else np.zeros(0)


def length_measures(prompts: Sequence[Prompt]) -> np.ndarray:
    """The columns of `LengthSignals`, (N, 6)."""
    return np.array([measures(prompt.text) for prompt in prompts])


def one_hot(names: Sequence[str]) -> np.ndarray:
    """One 0/1 column a name but the first, (N, names - 1)."""
    values, number = np.unique(names, return_inverse=True)
    return np.eye(len(values))[number][:, 1:]


def residuals(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What a linear function of the covariates and a constant leaves of the values."""
    columns = np.column_stack([np.ones(len(values)), known])
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def mean(values: np.ndarray) -> Statistic:
    """The mean over each draw."""
    return lambda counts: counts @ values / counts.sum(axis=1)


def rank_agreement(labels: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Spearman's correlation in each draw, 0 where a side is constant; all draws at once, which must be of equal size."""
    from scipy.stats import rankdata

    prompts = np.arange(len(labels))

    def statistic(counts: np.ndarray) -> np.ndarray:
        drawn = np.repeat(np.tile(prompts, len(counts)), counts.ravel()).reshape(len(counts), -1)
        ranks = [rankdata(values[drawn], axis=1) for values in (labels, predicted)]
        a, b = (each - each.mean(axis=1, keepdims=True) for each in ranks)
        scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(scale)), where=scale > 0)

    return statistic


def left_agreement(labels: np.ndarray, known: np.ndarray) -> Callable[[np.ndarray], Statistic]:
    """Spearman's correlation given covariates; ranks and regressions are those of all prompts, not of each draw."""
    from scipy.stats import rankdata

    ranks = rankdata(known, axis=0)
    wanted = residuals(rankdata(labels), ranks)

    def contest(predicted: np.ndarray) -> Statistic:
        left = residuals(rankdata(predicted), ranks)
        return lambda counts: pearson(left, wanted, counts)

    return contest


def auc(labels: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Area under the ROC curve in each draw."""
    from sklearn.metrics import roc_auc_score

    return lambda counts: np.array([roc_auc_score(labels, predicted, sample_weight=each) for each in counts])
