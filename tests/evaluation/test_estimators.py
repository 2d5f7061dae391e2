"""Estimators against numbers worked by hand and against their definitions."""

from itertools import combinations
from math import comb, nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.evaluation.estimators import avg_at_k, bootstrap_interval, maj_at_k, pass_at_k


def test_avg_leaves_failed_graders_out():
    scores = torch.tensor([[1.0, 0.0, nan, 1.0], [nan, nan, nan, nan]])
    torch.testing.assert_close(avg_at_k(scores), torch.tensor([2 / 3, nan]), equal_nan=True)


def test_pass_at_k_by_hand():
    """With n = 4, c = 1 gives 1 - C(3,2)/C(4,2) = 1/2; c = 2 gives 1 - 1/6; c = 0 gives 0; c = 3 gives 1."""
    correct = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    torch.testing.assert_close(pass_at_k(correct, 2), torch.tensor([0.5, 5 / 6, 0.0, 1.0]))


def test_pass_at_k_counts_graded_samples_only():
    correct = torch.tensor([[1.0, 0.0, nan], [1.0, nan, nan]])
    torch.testing.assert_close(pass_at_k(correct, 2), torch.tensor([1.0, nan]), equal_nan=True)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(combinations(correct, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(torch.tensor([correct]).double(), k).item() == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    correct = torch.zeros(1, 4096, dtype=torch.float64)
    correct[0, :3] = 1
    assert pass_at_k(correct, 2048).item() == pytest.approx(1 - comb(4093, 2048) / comb(4096, 2048), abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "scores", "expected"),
    [
        (["7", "7", "8", "9"], [1, 1, 0, 0], 1.0),
        (["7", "8", "8", "9"], [1, 0, 0, 0], 0.0),
        (["7", "7", "8", "8"], [1, 1, 0, 0], 0.5),  # tied
        (["7", "8", "9", ""], [1, 0, 0, 0], 1 / 3),  # three-way tie
        (["7", "", "", ""], [1, 0, 0, 0], 1.0),  # no answer is no vote
        (["", "", "", ""], [0, 0, 0, 0], 0.0),
        (["7", "8", "8", "8"], [1, nan, nan, nan], 1.0),  # not graded, no vote
        (["7", "7", "8", "8"], [nan, nan, nan, nan], nan),
    ],
)
def test_maj_at_k_scores_the_most_frequent_answer(answers, scores, expected):
    assert maj_at_k([answers], torch.tensor([scores]).float()).item() == pytest.approx(expected, nan_ok=True)


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    """Half the questions right: the standard error is 0.5 / sqrt(400) = 0.025, so the ends are at 0.5 ± 0.049."""
    right = np.repeat([0.0, 1.0], 200)
    low, high = bootstrap_interval(right)
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.004)
    assert bootstrap_interval(np.append(right, nan)) == (low, high)
    narrow = bootstrap_interval(right, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval(np.array([0.25, 0.25])) == (0.25, 0.25)
    assert np.isnan(bootstrap_interval(np.array([nan]))).all()
