"""Probes: planted weights are found, labels stay out of their own predictions, sparse and dense agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from saerl_lightning.data.features import deviation, nonfinite_rows, unit_rows
from saerl_lightning.data.probe_fits import fit_elastic_net, fit_ridge, fit_trees, fold_of, out_of_fold
from saerl_lightning.data.probes import ElasticNetProbe, RidgeProbe, TreeProbe
from saerl_lightning.data.scores import spearman
from saerl_lightning.errors import InputError

ALPHAS = (0.001, 0.1, 1.0, 10.0)


def planted(n=400, columns=300, active=6, noise=0.5, seed=0, density=0.1):
    """Sparse rows, labels that are a sum over a few columns of very unequal scale, and those columns."""
    random = np.random.default_rng(seed)
    rows = random.uniform(0.5, 1.5, (n, columns)) * (random.random((n, columns)) < density)
    scale = 10.0 ** random.integers(-2, 3, size=columns)
    chosen = random.choice(columns, active, replace=False)
    weights = np.zeros(columns)
    weights[chosen] = random.choice([-1, 1], active) * 2.0
    labels = rows @ weights
    labels = labels + noise * labels.std() * random.standard_normal(n) + 7.0
    return csr_array(rows * scale), labels, np.sort(chosen)


def test_ridge_by_hand():
    # One centred column x = -1 1, labels 0 4; variance 1, so alpha is in units of it: w = (x.y) / (x.x + alpha) = 4 / 4.
    for rows in (np.array([[-1.0], [1.0]]), csr_array([[-1.0], [1.0]])):
        fit = fit_ridge(rows, np.array([0.0, 4.0]), (2.0,), folds=2, seed=0)
        assert fit.weights == pytest.approx([1.0], abs=1e-3) and fit.intercept == pytest.approx(2.0)
        assert fit.predict(rows) == pytest.approx([1.0, 3.0], abs=1e-3)


def test_ridge_penalties_do_not_depend_on_the_features_scale():
    rows, labels, _ = planted()
    at_once = fit_ridge(rows, labels, ALPHAS, 5, 0).predict(rows)
    scaled = fit_ridge(rows * 1000.0, labels, ALPHAS, 5, 0).predict(rows * 1000.0)
    assert scaled == pytest.approx(at_once, rel=1e-6)


def test_elastic_net_by_hand():
    # One column, scaled to -1 1; labels 0 4. The covariance is 2: soft-thresholded by alpha / 2, shrunk by 1 + alpha / 2.
    rows, labels = np.tile([[-3.0], [3.0]], (20, 1)), np.tile([0.0, 4.0], 20)
    fit = fit_elastic_net(rows, labels, (0.5,), folds=4, seed=0)
    alphas = 4.0 * 10 ** (-2 * np.arange(12) / 11)  # from the penalty that leaves nothing down to a hundredth of it
    possible = (2 - alphas / 2) / (1 + alphas / 2)
    assert np.abs(possible - fit.weights * 3).min() < 1e-3
    assert fit.weights * 3 > 1.9  # the labels have no noise, so a weak penalty is best
    assert fit.intercept == pytest.approx(2.0)


def test_elastic_net_finds_the_planted_columns_of_any_scale():
    rows, labels, chosen = planted(n=600)
    fit = fit_elastic_net(rows, labels, (0.5, 0.9), 5, 0)
    strength = np.abs(fit.weights * deviation(rows))
    assert np.sort(np.argsort(-strength)[: len(chosen)]).tolist() == chosen.tolist()
    assert fit.nonzero < 150


@pytest.mark.parametrize(
    "probe", [RidgeProbe(ALPHAS), ElasticNetProbe((0.5,)), TreeProbe(trees=60)], ids=["ridge", "elastic net", "trees"]
)
def test_probes_predict_held_out_rows_and_report_it(probe):
    rows, labels, _ = planted(n=1000, noise=0.3)
    if isinstance(probe, RidgeProbe):
        rows = csr_array(rows / deviation(rows))  # ridge takes columns as they are
    taught = np.random.default_rng(0).permutation(1000)[:600]
    said = probe.fit_predict(rows, taught, labels[taught])
    held_out = np.setdiff1d(np.arange(1000), taught)
    reported = said.scores["spearman"]
    assert spearman(said.values[held_out], labels[held_out]) == pytest.approx(reported.value, abs=0.1)
    assert reported.value > 0.5
    assert reported.low < reported.value < reported.high
    metrics = said.metrics()
    assert metrics["probe/labels"] == 600 and 0 < metrics["probe/nonzero"] <= 300
    assert metrics["probe/r2_low"] < metrics["probe/r2"] < metrics["probe/r2_high"]
    again = probe.fit_predict(rows, taught, labels[taught])
    assert np.array_equal(again.values, said.values) and again.metrics() == metrics


def test_labels_without_a_link_are_not_predicted():
    rows, labels, _ = planted(n=300)
    shuffled = np.random.default_rng(3).permutation(labels)
    for probe in (RidgeProbe(ALPHAS), ElasticNetProbe((0.5,)), TreeProbe(trees=20)):
        scores = probe.fit_predict(rows, np.arange(300), shuffled).scores
        assert scores["spearman"].low < 0.05 and scores["r2"].value < 0.05


def test_no_label_reaches_its_own_prediction():
    rows, labels, _ = planted(n=60)
    changed = labels.copy()
    changed[17] += 1000.0

    def fit(features, values):
        return fit_ridge(features, values, (1.0,), 3, 0)

    before, after = (out_of_fold(fit, rows, each, 4, seed=1) for each in (labels, changed))
    assert after[17] == before[17]
    own = fold_of(labels, 4, seed=1) == fold_of(labels, 4, seed=1)[17]
    assert np.array_equal(before[own], after[own]) and not np.isclose(before[~own], after[~own]).any()


def test_sparse_and_dense_rows_give_the_same_probes():
    rows, labels, _ = planted(n=200, columns=40, density=0.4)
    dense = rows.toarray()
    for fit in (
        lambda features: fit_ridge(features, labels, ALPHAS, 4, 0),
        lambda features: fit_elastic_net(features, labels, (0.2, 0.9), 4, 0),
        lambda features: fit_trees(features, labels, 20, 7, 0),
    ):
        assert fit(rows).predict(rows) == pytest.approx(fit(dense).predict(dense), rel=0.02, abs=0.05 * labels.std())


def test_beyond_two_thousand_labels_penalties_are_chosen_on_a_sample_and_all_labels_are_used():
    rows, labels, chosen = planted(n=5000, columns=50)
    whole, sample = (fit_elastic_net(rows[:n], labels[:n], (0.9,), 5, 0) for n in (5000, 2000))
    truth = np.zeros(50)
    truth[chosen] = fit_ridge(rows[:, chosen] / deviation(rows[:, chosen]), labels, (1e-6,), 2, 0).weights
    errors = [np.abs(fit.weights * deviation(rows) - truth).sum() for fit in (whole, sample)]
    assert errors[0] < errors[1]


@given(st.integers(2, 6), st.integers(6, 50), st.booleans(), st.integers(0, 99))
def test_folds_are_even_and_spread_either_class(folds, n, binary, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=n).astype(float) if binary else random.random(n)
    fold = fold_of(labels, folds, seed)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    if binary:
        ones = np.bincount(fold, weights=labels, minlength=folds)
        assert ones.max() - ones.min() <= 1


@pytest.mark.parametrize("n", [5, 6, 9])
def test_as_few_labels_as_folds_work(n):
    rows, labels, _ = planted(n=30)
    for probe in (RidgeProbe(ALPHAS), ElasticNetProbe((0.5,)), TreeProbe(trees=3)):
        for few in (labels[:n], np.eye(n)[0]):  # one label of the rarer kind
            said = probe.fit_predict(rows, np.arange(n), few)
            assert np.isfinite(said.values).all() and len(said.values) == 30


@pytest.mark.parametrize("probe", [RidgeProbe(), ElasticNetProbe(), TreeProbe(trees=3)])
def test_too_few_and_constant_labels_are_refused(probe):
    rows, labels, _ = planted(n=30)
    with pytest.raises(InputError, match="4 labels for 5 folds; label more prompts"):
        probe.fit_predict(rows, np.arange(4), labels[:4])
    with pytest.raises(InputError, match="all 20 labels are 3; a probe learns only from labels that differ"):
        probe.fit_predict(rows, np.arange(20), np.full(20, 3.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RidgeProbe(alphas=()), "RidgeProbe.alphas is empty; write"),
        (lambda: RidgeProbe(alphas=(1.0, 0.0)), "RidgeProbe.alphas is .*, with 0.0; write"),
        (lambda: RidgeProbe(folds=1), "RidgeProbe.folds is 1; write"),
        (lambda: ElasticNetProbe(l1_ratios=(0.0,)), "ElasticNetProbe.l1_ratios is .*, with 0.0; write"),
        (lambda: TreeProbe(leaves=1), "TreeProbe.leaves is 1; write"),
        (lambda: TreeProbe(trees=0), "TreeProbe.trees is 0; write"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(InputError, match=said):
        make()


@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=60)
def test_row_helpers_agree_between_sparse_and_dense(n, columns, seed):
    random = np.random.default_rng(seed)
    dense = random.standard_normal((n, columns)) * (random.random((n, columns)) < 0.4)
    assert deviation(csr_array(dense)) == pytest.approx(dense.std(axis=0), abs=1e-7)
    units = unit_rows(csr_array(dense)).toarray()
    assert units == pytest.approx(unit_rows(dense))
    norms = np.linalg.norm(units, axis=1)
    assert norms == pytest.approx(dense.any(axis=1).astype(float), abs=1e-6)
    broken = dense.copy()
    bad = np.unique(random.integers(n, size=2))
    broken[bad, 0] = random.choice([np.nan, np.inf, -np.inf])
    assert nonfinite_rows(broken).tolist() == nonfinite_rows(csr_array(broken)).tolist() == bad.tolist()
    assert not len(nonfinite_rows(dense)) and not len(nonfinite_rows(csr_array(dense)))
