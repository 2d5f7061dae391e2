"""Answers that are compared as text: where the answer is found, which differences count, and what is refused."""

import math

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.reward.answer_reward import AnswerReward
from tests.reward.examples import rollouts


def prompt(answer: str, **columns) -> Prompt:
    return Prompt("capital", ({"role": "user", "content": "Whose capital?"},), answer, columns=columns)


def grades(reward: AnswerReward, asked: Prompt, *texts: str) -> list[float]:
    return reward([asked], rollouts([*texts]))[0].tolist()


@pytest.mark.parametrize(
    ("answer", "text", "equal"),
    [
        ("Paris", "paris.", True),
        ("Paris", "  PARIS \n", True),
        ("Paris", "Ｐａｒｉｓ", True),  # full width
        ("São Paulo", "sa\u0303o paulo", True),  # decomposed
        ("São Paulo", "Sao Paulo", False),
        ("Straße", "STRASSE", True),
        ("New York", "New\u00a0 York!", True),
        ("New York", "NewYork", False),
        ("don't", "dont", True),
        ("U.S.", "us", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("1,000", "1000", False),
        ("well-known", "wellknown", True),
        ("?", "!", False),
        ("?", "?", True),
        ("Paris", "Paris, France", False),
        ("Paris", "", False),
        ("Paris", "The city is <answer> Paris </answer>", True),
        ("Paris", r"So \boxed{Paris}", True),
        ("Paris", "<answer>Paris</answer> no, <answer>Rome</answer>", False),
        ("the Hague", "Hague", False),
        ("Paris", "<think>Rome? </think> Paris", True),
        ("Paris", "<think>Paris</think> Rome", False),
        ("Paris", "Paris</think> ", False),
    ],
)
def test_answers_that_differ_in_what_is_ignored_are_equal(answer, text, equal):
    assert grades(AnswerReward(), prompt(answer), text) == [float(equal)]


def test_what_counts_can_be_chosen():
    assert grades(AnswerReward(ignore=[]), prompt("ls -l"), "ls -l", "ls -L", "ls  -l") == [1, 0, 0]
    assert grades(AnswerReward(ignore=["case"]), prompt("ls -l"), "LS -l", "ls l") == [1, 0]
    articles = AnswerReward(ignore=["case", "articles", "spacing"])
    assert grades(articles, prompt("The Hague"), "hague", "a hague", "theirhague") == [1, 1, 0]
    with pytest.raises(
        InputError, match=r"AnswerReward.ignore has 'Case'; write some of form, case, punctuation, articles"
    ):
        AnswerReward(ignore=["Case"])


def test_a_pattern_finds_the_last_answer():
    reward = AnswerReward(pattern=r"(?i)answer: *(\w+)")
    assert grades(reward, prompt("B"), "Answer: A. No, answer: b", "B", "Answer: B or answer: C") == [1, 0, 0]
    assert [reward.vote(text) for text in ("answer: B!", "none")] == ["b", ""]
    assert grades(AnswerReward(pattern=r"[ABCD]"), prompt("B"), "not A, so B") == [1]
    with pytest.raises(InputError, match=r"pattern '\(' is no regular expression"):
        AnswerReward(pattern="(")


def test_a_pattern_without_end_is_not_a_wrong_answer():
    reward = AnswerReward(pattern="^(a|a)*$", deadline_s=0.1)
    slow, right = grades(reward, prompt("a"), "a" * 40 + "!", "aa")
    assert math.isnan(slow) and right == 1.0 and reward.overruns == 1
    assert reward.vote("a" * 40 + "!") == ""


def test_several_answers_are_accepted():
    asked = prompt("Den Haag", aliases=["The Hague", "'s-Gravenhage"], deeper={"names": ["La Haye"]}, one="Haag")
    texts = ["den haag", "the hague", "s-gravenhage", "La Haye", "Haag"]
    assert grades(AnswerReward(accepted="aliases"), asked, *texts) == [1, 1, 1, 0, 0]
    assert grades(AnswerReward(accepted="deeper.names"), asked, *texts) == [1, 0, 0, 1, 0]
    assert grades(AnswerReward(accepted="one"), asked, *texts) == [1, 0, 0, 0, 1]
    AnswerReward(accepted="aliases").require([asked, prompt("Rome")])
    with pytest.raises(
        InputError, match="accepted is 'alias', and no prompt has it; the columns are aliases, deeper, one"
    ):
        AnswerReward(accepted="alias").require([asked])
    with pytest.raises(InputError, match="prompt 'capital' has no answer"):
        AnswerReward().require([prompt(" ")])
