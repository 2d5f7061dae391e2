"""Made worlds: the truth about each prompt, what does not tell of it, and pools that can't be made."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from sklearn.metrics import roc_auc_score

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.prompts.worlds.crowded import CrowdedPrompts
from saerl_lightning.prompts.worlds.dirty import DirtyPrompts, garbled, matched
from saerl_lightning.prompts.worlds.writers import HABITS, WrittenPrompts, written
from saerl_lightning.records import Prompt
from saerl_lightning.signals.text import LengthSignals, TextSignals

TASKS = {"chain_sum": 1.0, "basic_arithmetic": 1.0, "spell_backward": 1.0, "letter_counting": 1.0}
EASY = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    "letter_counting": {"min_words": 1, "max_words": 3},
}
SOURCE = ReasoningGymPrompts(TASKS, 1600, 1, EASY)


@pytest.fixture(scope="module")
def original() -> dict[str, Prompt]:
    return {prompt.uid: prompt for prompt in SOURCE.load()}


@pytest.fixture(scope="module")
def dirty() -> list[Prompt]:
    return DirtyPrompts(SOURCE, 1000, seed=3).load()


def test_bad_prompts_are_bad_and_good_ones_are_as_they_were(original, dirty):
    """A habit changes no digit, and no word of the question; a damage does, or the answer is another's."""
    assert [prompt.labels["quality"] for prompt in dirty].count(1.0) == 500
    assert len({prompt.uid for prompt in dirty}) == 1000 and not any(prompt.grading for prompt in dirty)
    ways = Counter(prompt.columns["dirt"] for prompt in dirty)
    assert {"", "wrong_answer", "number_removed", "quantity_contradicted", "garbled"} <= {*ways}
    assert 0.4 < ways["wrong_answer"] / 500 < 0.6
    for prompt in dirty:
        true = original[prompt.uid]
        asked = true.normalised_text in prompt.normalised_text
        right = prompt.answer == true.answer
        whole = prompt.columns["dirt"] in (
            "",
            "wrong_answer",
            "quantity_contradicted",
        )  # the last says more than was asked
        assert (asked, right) == (whole, prompt.columns["dirt"] != "wrong_answer")
        assert prompt.labels["quality"] == (prompt.columns["dirt"] == "")
    answers = defaultdict(set)
    for prompt in original.values():
        answers[prompt.topic].add(prompt.answer)
    assert all(prompt.answer in answers[prompt.topic] for prompt in dirty)


def test_neither_length_nor_topic_nor_a_word_tells_which_prompts_are_bad(dirty):
    bad = [1 - prompt.labels["quality"] for prompt in dirty]
    assert abs(roc_auc_score(bad, [len(prompt.text) for prompt in dirty]) - 0.5) < 0.02
    topics = Counter((prompt.topic, prompt.labels["quality"]) for prompt in dirty)
    assert all(topics[topic, 0.0] == topics[topic, 1.0] for topic in TASKS)
    holding = defaultdict(list)
    for row, prompt in enumerate(dirty):
        for word in {*prompt.text.split()}:
            holding[word].append(bad[row])
    # The share of the bad among the prompts with a word is, for every word that is not rare, far from 0 and from 1.
    shares = [np.mean(rows) for rows in holding.values() if len(rows) >= 100]
    assert len(shares) > 20 and min(shares) > 0.2 and max(shares) < 0.8


def test_signals_read_neither_labels_nor_columns_nor_answers(dirty):
    blank = [replace(prompt, labels={}, columns={}, answer="?", topic=None, source="") for prompt in dirty]
    assert (LengthSignals().features(dirty) != LengthSignals().features(blank)).sum() == 0
    assert (TextSignals().features(dirty) != TextSignals().features(blank)).sum() == 0


def test_a_seed_draws_a_world_again_and_another_draws_another(dirty):
    assert DirtyPrompts(SOURCE, 1000, seed=3).load() == dirty
    other = {prompt.uid: prompt.columns["dirt"] for prompt in DirtyPrompts(SOURCE, 1000, seed=4).load()}
    assert sum(other.get(prompt.uid) == prompt.columns["dirt"] for prompt in dirty) < 500


@given(st.lists(st.integers(0, 30), max_size=12), st.lists(st.integers(0, 30), max_size=12), st.integers(0, 4))
def test_matched_pairs_are_as_many_as_there_can_be(left, right, gap):
    """Against scipy's maximum matching of a bipartite graph."""
    bad, good = (
        [Prompt.asking(f"{side}{i}", "x" * n) for i, n in enumerate(each)]
        for side, each in zip("bg", (left, right), strict=True)
    )
    pairs = matched(bad, good, gap)
    assert all(abs(len(a.text) - len(b.text)) <= gap for a, b in pairs)
    assert len({a.uid for a, _ in pairs}) == len({b.uid for _, b in pairs}) == len(pairs)
    if left and right:
        graph = np.abs(np.subtract.outer(left, right)) <= gap
        assert len(pairs) == (maximum_bipartite_matching(csr_array(graph)) >= 0).sum()
    else:
        assert not pairs


def test_a_garbled_text_keeps_its_form_and_loses_two_signs_of_five():
    text = "Natalia sold 48 clips, and HALF as many in May (2 > 1)! " * 40
    bad = garbled(text, np.random.default_rng(0))
    signs = [(a, b) for a, b in zip(text, bad, strict=True) if a.isalnum()]
    assert all(a == b for a, b in zip(text, bad, strict=True) if not a.isalnum())
    assert all((a.isdigit(), a.isupper(), a.islower()) == (b.isdigit(), b.isupper(), b.islower()) for a, b in signs)
    assert 0.37 < sum(a != b for a, b in signs) / len(signs) < 0.43


def test_a_careless_writer_is_told_by_all_habits_together():
    """Six habits at .7 and .3: their log odds, each log(7 / 3), differ by 6 * .4 * 2 log(7 / 3) between the writers."""
    drawn = {
        name: [written("Is 3 + 4 seven?", chance, np.random.default_rng(seed)) for seed in range(2000)]
        for name, chance in (("careless", 0.7), ("careful", 0.3))
    }
    for habit, shown in (("greets", "ello."), ("thanks", "Thanks."), ("arrow", "->"), ("dash", "- ")):
        share = {name: np.mean([shown in text for text in texts]) for name, texts in drawn.items()}
        high, low = ("careless", "careful") if habit in ("greets", "arrow") else ("careful", "careless")
        assert 0.66 < share[high] < 0.74 and 0.26 < share[low] < 0.34
    lengths = [np.mean([len(text) for text in texts]) for texts in drawn.values()]
    assert abs(lengths[0] - lengths[1]) < 1 and len(HABITS) == 6


def test_written_prompts_keep_answers_and_lose_recipes(original):
    prompts = WrittenPrompts(SOURCE, seed=1).load()
    assert [prompt.answer for prompt in prompts] == [prompt.answer for prompt in original.values()]
    assert all(
        prompt.grading == "" and original[prompt.uid].normalised_text in prompt.normalised_text for prompt in prompts
    )
    assert len({prompt.text for prompt in prompts}) > 1000


def test_a_crowd_is_near_duplicates_of_few_questions():
    pool = CrowdedPrompts(SOURCE, 1000, "letter_counting", copies=4, seed=2).load()
    groups = defaultdict(list)
    for prompt in pool:
        groups[prompt.labels["group"]].append(prompt)
    crowd = [group for group in groups.values() if group[0].topic == "letter_counting"]
    assert sum(map(len, crowd)) == 850 and len({prompt.uid for prompt in pool}) == 1000
    assert Counter(map(len, crowd)) == {4: 212, 2: 1}
    assert all(len(group) == 1 for group in groups.values() if group[0].topic != "letter_counting")
    for group in crowd:
        assert all(a.answer == b.answer for a, b in pairwise(group))
    assert np.mean([len({prompt.text for prompt in group}) for group in crowd]) > 3.5


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            DirtyPrompts(SOURCE, 1600),
            r"DirtyPrompts.size is 1600, but the 1600 prompts of its source give \d+ pairs .*; write",
        ),
        (
            CrowdedPrompts(SOURCE, 4000, "letter_counting", copies=1),
            r"needs 3400 questions of the topic 'letter_counting', and its",
        ),
        (
            CrowdedPrompts(SOURCE, 1000, "algebra"),
            r"source has 0 \(topics: basic_arithmetic, chain_sum, letter_counting, spell",
        ),
        (
            CrowdedPrompts(SOURCE, 9000, "chain_sum", copies=50),
            "needs 1350 questions outside the topic 'chain_sum', and its",
        ),
    ],
)
def test_a_source_that_is_too_small_is_refused_with_what_it_holds(source, said):
    with pytest.raises(InputError, match=said):
        source.load()
