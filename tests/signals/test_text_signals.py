"""Signals from the text alone, and the broken link: numbers worked by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.random_signals import RandomSignals, ShuffledSignals, without_fixed_points
from saerl_lightning.signals.text import LengthSignals, TextSignals, measures


def pool(*texts: str) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", text, "1") for i, text in enumerate(texts)]


def test_tf_idf_by_hand():
    """Inverse document frequency = log((1 + N) / (1 + df)) + 1; rows of length 1."""
    source = TextSignals(ngrams=1, sublinear=False)
    rows = source.features(pool("Add add 12", "Add $x$"))
    assert isinstance(rows, csr_array) and rows.dtype == np.float32
    assert source.names == ["$", "12", "add", "x"]
    rare = np.log(3 / 2) + 1
    first, second = np.array([0, rare, 2, 0]), np.array([2 * rare, 0, 1, rare])
    expected = np.stack([first / np.linalg.norm(first), second / np.linalg.norm(second)])
    assert rows.toarray() == pytest.approx(expected, abs=1e-6)


def test_words_are_latex_commands_numbers_signs_and_any_letters():
    source = TextSignals(ngrams=1)
    source.features(pool("\\frac{1}{23}x_4 naïve Straße"))
    assert source.names == sorted(["\\frac", "{", "1", "}", "23", "x", "_", "4", "naïve", "straße"])


def test_n_grams_are_counted_and_the_vocabulary_is_bounded():
    source = TextSignals(max_features=3, ngrams=2)
    assert source.features(pool("a b a b", "a b c")).shape == (2, 3)
    assert source.names == ["a", "a b", "b"]


def test_length_signals_measure_six_things_of_a_text():
    assert measures("Add 3 and 1,200.5. Why?") == pytest.approx([*np.log1p([23, 5, 6, 2, 2]), 0])
    assert measures("\\frac{1}{2}") == pytest.approx([*np.log1p([11, 1, 2, 2, 0]), 9 / 11])
    assert measures("") == [0.0] * 6
    assert len(LengthSignals.names) == 6
    assert LengthSignals().features([]).shape == (0, 6)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_a_shuffle_leaves_no_row_in_its_place(count):
    for seed in range(20):
        order = without_fixed_points(count, seed)
        assert sorted(order.tolist()) == list(range(count))
        assert count < 2 or (order != np.arange(count)).all()
    prompts = pool(*map(str, range(count)))
    rows, shuffled = RandomSignals(3).features(prompts), ShuffledSignals(RandomSignals(3), seed=2).features(prompts)
    assert np.array_equal(np.sort(shuffled, axis=0), np.sort(rows, axis=0))
    assert np.array_equal(shuffled, rows[without_fixed_points(count, 2)])


def test_every_cycle_is_drawn_alike():
    drawn = {tuple(without_fixed_points(4, seed).tolist()) for seed in range(200)}
    assert len(drawn) == 6  # (4 - 1)! permutations of one cycle


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"TextSignals\.ngrams is 0; write a whole number from 1 to 100"):
        TextSignals(ngrams=0)
    with pytest.raises(InputError, match="found no word in 2 prompts"):
        TextSignals().features(pool(" ", ""))
