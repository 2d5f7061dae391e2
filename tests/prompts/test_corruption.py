"""Corrupted copies: each kind does what it says, nothing is left as it was, and the same seed breaks the same things."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.corruption import (
    KINDS,
    CorruptedCopies,
    another_number,
    corrupted_copy,
    number_removed,
    quantity_contradicted,
    question_cut,
    sentence_dropped,
    sentences,
)
from saerl_lightning.records import Prompt

CATS = "Mr. Lee has 3 cats. Each cat eats $2.50 a day. How much do his cats eat in a week?"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def user(text: str, uid: str = "p", **fields) -> Prompt:
    return Prompt.asking(uid, text, "1", **fields)


def outcomes(kind, text: str = CATS) -> set[str]:
    return {kind(text, rng(seed)) for seed in range(60)}


def test_sentences_end_at_their_ends_and_not_at_a_title():
    assert sentences(CATS) == [
        "Mr. Lee has 3 cats. ",
        "Each cat eats $2.50 a day. ",
        "How much do his cats eat in a week?",
    ]
    assert sentences("Why? So.") == ["Why? So."]
    assert sentences("He has 3 cats. Why?") == ["He has 3 cats. Why?"]
    assert sentences("") == []


def test_a_number_is_removed_with_its_sign():
    assert outcomes(number_removed) == {CATS.replace(" 3", ""), CATS.replace(" $2.50", "")}
    assert number_removed("no number", rng()) == "no number"
    assert number_removed("worth 1,200,000 at 5% now", rng(1)) in {"worth at 5% now", "worth 1,200,000 at now"}


def test_a_sentence_is_dropped_but_never_the_question():
    ends = CATS[20:], CATS[:20] + CATS[47:]
    assert outcomes(sentence_dropped) == set(ends)
    assert sentence_dropped("What is 1 + 1?", rng()) == "What is 1 + 1?"


def test_a_statement_comes_again_with_another_number():
    for text in outcomes(quantity_contradicted):
        first, second, third, question = sentences(text)
        assert question == "How much do his cats eat in a week?"
        pairs = [(first, second), (second, third)]
        same = [(a, b) for a, b in pairs if a.split()[:2] == b.split()[:2]]
        assert len(same) == 1 and same[0][0] != same[0][1]
    assert quantity_contradicted("What is 1?", rng()).startswith("What is 1? What is ")
    assert quantity_contradicted("no number", rng()) == "no number"


def test_a_cut_question_keeps_a_quarter_to_three_quarters_of_its_words():
    kept = {len(text[47:].split()) for text in outcomes(question_cut)}
    assert kept == set(range(2, 8))  # of 9 words, from round(2.25) to round(6.75)
    assert all(CATS.startswith(text) for text in outcomes(question_cut))
    assert question_cut("why?", rng()) == "why?"


@pytest.mark.parametrize("number", ["0", "3", "1,200", "2.50", "0.05", "99999999999999"])
def test_another_number_is_another_one_of_the_same_form(number):
    for seed in range(20):
        other = another_number(number, rng(seed))
        old, new = float(number.replace(",", "")), float(other)
        assert old < new
        assert len(other.partition(".")[2]) == len(number.partition(".")[2])


@given(st.text(max_size=80), st.sampled_from(sorted(KINDS)), st.integers(0, 99))
def test_every_kind_of_corruption_takes_any_text(text, kind, seed):
    assert "".join(sentences(text)) == text
    assert isinstance(KINDS[kind](text, rng(seed)), str)


@given(st.lists(st.text(alphabet="ab 12.?", min_size=1, max_size=60), min_size=2, max_size=12, unique=True))
def test_a_copy_differs_from_its_prompt_and_carries_quality_alone(texts):
    pool = [user(text, f"p{i}", topic="t", labels={"difficulty": 3.0}) for i, text in enumerate(texts)]
    copies = CorruptedCopies(100, seed=3).prompts(pool)
    known = {prompt.uid: prompt for prompt in pool}
    assert len({copy.uid for copy in copies} | set(known)) == len(copies) + len(pool)
    for copy in copies:
        uid, _, fate = copy.uid.partition("#")
        assert copy.labels == {"quality": 0.0 if fate == "corrupted" else 1.0}
        assert (copy.text.split() == known[uid].text.split()) == (fate == "intact")
        assert copy.source.partition(":")[0] == fate
    assert [copy.text for copy in CorruptedCopies(100, seed=3).prompts(pool)] == [copy.text for copy in copies]


def test_half_are_corrupted_and_all_kinds_occur():
    pool = [user(CATS.replace("3", str(i + 2)), f"p{i}") for i in range(400)]
    kinds = Counter(copy.source for copy in CorruptedCopies(300).prompts(pool))
    assert kinds.pop("intact") == 150 and sum(kinds.values()) == 150
    assert set(kinds) == {f"corrupted:{kind}" for kind in KINDS} and min(kinds.values()) > 20
    assert [c.uid for c in CorruptedCopies(300, 1).prompts(pool)] != [c.uid for c in CorruptedCopies(300).prompts(pool)]


def test_a_prompt_that_no_kind_can_change_is_left_out():
    assert corrupted_copy(user("why?"), 0) is None
    assert corrupted_copy(user("why?"), 0, ("number_removed",)) is None
    assert corrupted_copy(user("2 of them"), 0, ("sentence_dropped", "number_removed")).text == "of them"
    assert corrupted_copy(Prompt("p", ({"role": "system", "content": CATS},), "1"), 0) is None


def test_the_last_message_of_the_user_is_corrupted():
    chat = ({"role": "system", "content": "Count 3."}, {"role": "user", "content": "I have 4."})
    chat += ({"role": "assistant", "content": "And 5?"}, {"role": "user", "content": "How many are 6?"})
    copy = corrupted_copy(Prompt("p", chat, "1"), 0, ("number_removed",))
    assert [m["content"] for m in copy.messages] == ["Count 3.", "I have 4.", "And 5?", "How many are?"]


def test_one_sample_is_refused():
    with pytest.raises(InputError, match="samples is 1; write a whole number from 2 to"):
        CorruptedCopies(samples=1)
