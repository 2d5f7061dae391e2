"""Scores of predictions, worked by hand and against other libraries; intervals that cover as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import r2_score, roc_auc_score

from saerl_lightning.data.scores import agreement, bootstrap, grouping_agreement, partial_spearman, pearson, spearman


def test_scores_by_hand():
    labels, predictions = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    scores = agreement(predictions, labels)
    assert scores["r2"].value == pytest.approx(1 - 2 / 5)  # errors 0 1 1 0; spread 2.25 + .25 + .25 + 2.25
    assert scores["pearson"].value == scores["spearman"].value == pytest.approx(0.8)  # covariance 4 of 5
    assert scores.keys() == {"r2", "pearson", "spearman"}


def test_auc_counts_a_tie_as_half():
    # Pairs of a 1 (.5 and .9) with a 0 (.1 and .5): won, tied, won, won.
    assert agreement(np.array([0.1, 0.9]), np.array([0.0, 1.0]))["auc"].value == 1.0  # a single pair
    scores = agreement(np.array([0.1, 0.5, 0.5, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert scores["auc"].value == pytest.approx(3.5 / 4)


def test_a_constant_prediction_is_worth_nothing():
    scores = agreement(np.full(6, 2.0), np.array([0.0, 1, 0, 1, 1, 0]))
    assert (scores["pearson"].value, scores["spearman"].value, scores["auc"].value) == (0.0, 0.0, 0.5)
    assert scores["r2"].value == pytest.approx(-9)  # errors 4 1 4 1 1 4, spread 1.5
    assert scores["pearson"].low == scores["pearson"].high == 0.0


@given(st.integers(3, 60), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_scores_equal_other_libraries_on_every_resample(n, values, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=n).astype(float)
    predictions = random.integers(values, size=n) / 3.0
    counts = np.bincount(random.integers(n, size=n), minlength=n)
    drawn = np.repeat(np.arange(n), counts)
    x, y = predictions[drawn], labels[drawn]
    assert pearson(predictions, labels, counts[None]) == pytest.approx(pearson(x, y, np.ones((1, n), dtype=int)))
    if len(set(labels)) > 1:
        found = agreement(predictions, labels)
        assert found["auc"].value == pytest.approx(roc_auc_score(labels, predictions))
        assert found["r2"].value == pytest.approx(r2_score(labels, predictions))
        if len(set(predictions)) > 1:
            assert found["spearman"].value == pytest.approx(spearmanr(predictions, labels).statistic)
            assert spearman(predictions, labels) == found["spearman"].value


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    truth, held = 0.6, {"pearson": 0, "spearman": 0, "r2": 0}
    for trial in range(150):
        x = random.standard_normal(80)
        y = truth * x + np.sqrt(1 - truth**2) * random.standard_normal(80)
        scores = agreement(truth * x, y, seed=trial)
        exact = {"pearson": truth, "spearman": 6 / np.pi * np.arcsin(truth / 2), "r2": truth**2}
        for name, value in exact.items():
            held[name] += scores[name].low <= value <= scores[name].high
    assert all(0.88 <= count / 150 <= 0.99 for count in held.values()), held


def test_draws_without_a_value_are_left_out():
    score = bootstrap({"rare": lambda counts: np.where(counts[:, 0] == 0, np.nan, 1.0)}, 5)["rare"]
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)


def test_partial_correlation_removes_what_the_covariate_explains():
    random = np.random.default_rng(1)
    length, noise, other = random.standard_normal((3, 2000))
    both = partial_spearman(length + 0.3 * noise, length + 0.3 * other, length[:, None])
    assert abs(both.value) < 0.06 and both.low < 0 < both.high  # length was all they shared
    kept = partial_spearman(length + noise, length + noise + 0.3 * other, length[:, None])
    assert kept.value > 0.9  # they share the noise beyond length
    assert partial_spearman(length, noise + length, np.stack([length, length], 1)).value == 0.0  # nothing is left


def test_partial_correlation_by_hand():
    # Ranks are the values. r_xy = .8, r_xz = .4, r_yz = .2: (.8 - .08) / sqrt((1 - .16) (1 - .04)).
    x, y, z = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4]), np.array([3.0, 1, 2, 4])
    assert [spearman(a, b) for a, b in ((x, y), (x, z), (y, z))] == pytest.approx([0.8, 0.4, 0.2])
    expected = (0.8 - 0.08) / np.sqrt(0.84 * 0.96)
    assert partial_spearman(x, y, z[:, None]).value == pytest.approx(expected)


def test_groupings_that_are_equal_related_and_unrelated():
    topics = ["a", "b", "c", "d"] * 50
    numbers = np.tile([3, 1, 0, 2], 50)
    assert grouping_agreement(numbers, topics) == pytest.approx({"nmi": 1.0, "ami": 1.0, "ari": 1.0})
    # Two halves of four equal topics: mutual information log 2 against entropies log 2 and log 4.
    assert grouping_agreement(numbers // 2, topics)["nmi"] == pytest.approx(2 / 3)
    unrelated = grouping_agreement(np.random.default_rng(0).integers(4, size=200), topics)
    assert abs(unrelated["ami"]) < 0.03 and abs(unrelated["ari"]) < 0.03


def test_prompts_without_a_topic_do_not_count_and_one_topic_says_nothing():
    labels = np.array([0, 0, 1, 1, 0, 1])
    assert grouping_agreement(labels, ["a", "a", "b", "b", None, None])["ari"] == 1.0
    assert grouping_agreement(labels, ["a", None, "a", None, None, None]) == {}
    # Every pair of a topic is parted, and every pair of a cluster too: 0 of 6 pairs agree on being together, 2 on not being.
    assert grouping_agreement(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"])["ari"] == -0.5
