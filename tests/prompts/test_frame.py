"""Rows in memory are prompts as the rows of a file are, and lists are paired by position, whatever a frame's index says."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.frame import FramePrompts
from saerl_lightning.prompts.lists import ListPrompts
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.reward.answer_reward import AnswerReward
from saerl_lightning.reward.format import FormatReward
from saerl_lightning.reward.math_reward import MathReward

ROWS = [
    {"question": "How many clips?", "answer": "She sold 72.\n#### 72", "hint": "count", "size": 1},
    {"question": "How many bricks?", "answer": "#### 1,005", "hint": None, "size": 2},
]
TABLES = {
    "pandas": pd.DataFrame(ROWS, index=[7, 3]),
    "datasets": datasets.Dataset.from_list(ROWS),
    "a chosen part of datasets": datasets.Dataset.from_list([*ROWS[::-1], *ROWS]).select([1, 0]),
    "arrow": pa.Table.from_pylist(ROWS),
    "list": ROWS,
    "list of arrays' numbers": [{**row, "size": np.int64(row["size"])} for row in ROWS],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_rows_in_memory_are_read_as_those_of_a_file(rows):
    read = open_prompts(rows).read()
    assert [(each.text, each.answer, each.uid) for each in read.prompts] == [
        ("How many clips?", "72", "frame/0"),
        ("How many bricks?", "1005", "frame/1"),
    ]
    assert [(each.columns["hint"], each.columns["size"]) for each in read.prompts] == [("count", 1), (None, 2)]
    assert read.said == (
        "frame: 2 rows read as GSM8K: prompt from question, answer from answer (after '####'); other columns, which "
        "rewards can read: hint, size",
    )


def test_a_frame_can_be_a_part_of_a_mixture_and_have_its_columns_mapped():
    frame = pd.DataFrame({"q": ["1 + 1?", "2 + 2?"], "a": [2, 4]})
    [prompt] = FramePrompts(frame, {"prompt": "q", "answer": "a"}, limit=1, name="mine").load()
    assert (prompt.text, prompt.answer, prompt.uid) == ("1 + 1?", "2", "mine/0")
    mixed = open_prompts({"mine": frame}, {"prompt": "q", "answer": "a"}).load()
    assert [each.source for each in mixed] == ["mine", "mine"]


@pytest.mark.parametrize("missing", [None, ""])
@pytest.mark.parametrize("make", [pd.DataFrame, list, pa.Table.from_pylist], ids=["pandas", "list", "arrow"])
def test_a_missing_answer_is_refused_with_its_row(make, missing):
    rows = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "2 + 2?", "answer": missing}]
    rows += [{"prompt": "3 + 3?", "answer": "6"}]
    with pytest.raises(InputError, match="frame:2: no answer in column 'answer'"):
        open_prompts(make(rows)).load()


def test_what_a_frame_of_pandas_lacks_is_missing():
    rows = pd.DataFrame({"prompt": ["1 + 1?", "2 + 2?"], "answer": [2.0, np.nan], "level": [np.nan, 3]})
    assert FramePrompts(rows, limit=1).load()[0].labels == {}
    for each in (rows, rows.to_dict("records")):
        with pytest.raises(InputError, match="frame:2: no answer"):
            open_prompts(each).load()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "frame is empty; give it at least one prompt"),
        (pd.DataFrame({"a": [1]}), "frame: no known form"),
        (
            pd.DataFrame({"prompt": ["a", 1], "answer": ["1", 2]}),
            "can't be read: .*; give each column values of one kind",
        ),
    ],
)
def test_rows_that_are_no_prompts_are_refused(rows, said):
    with pytest.raises(InputError, match=said):
        open_prompts(rows).load()


@pytest.mark.parametrize("given", [pd.Series(["a"]), np.array(["a"]), 5, ["a question"], datasets.DatasetDict()])
def test_what_has_no_rows_is_refused_by_its_kind(given):
    with pytest.raises(InputError, match=f"prompts are given as a?.?{type(given).__name__}"):
        open_prompts(given).load()
    with pytest.raises(InputError, match=r"FramePrompts\.rows is"):
        FramePrompts(given)


def test_lists_of_a_shuffled_frame_are_paired_by_position():
    """By the index's labels, the first question would get the last answer."""
    frame = pd.DataFrame({"q": ["one", "two", "three"], "a": [1, 2, 3], "hard": [0.1, 0.2, 0.3]}).iloc[::-1]
    prompts = ListPrompts(frame.q, frame.a, labels={"difficulty": frame.hard}).load()
    assert [(each.text, each.answer, each.labels) for each in prompts] == [
        ("three", "3", {"difficulty": 0.3}),
        ("two", "2", {"difficulty": 0.2}),
        ("one", "1", {"difficulty": 0.1}),
    ]
    assert len(ListPrompts(frame[frame.a > 1].q.to_numpy(), frame[frame.a > 1].a.to_numpy()).load()) == 2


def test_a_label_that_is_not_known_is_left_out():
    prompts = ListPrompts(["a", "b", "c"], labels={"difficulty": [1, None, float("nan")]}).load()
    assert [each.labels for each in prompts] == [{"difficulty": 1.0}, {}, {}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"questions": ["a", None]}, r"questions\[1\] is None; give a text"),
        ({"questions": ["a", " "]}, r"questions\[1\] is ' '; give a text"),
        ({"questions": ["a", "b"], "answers": ["1", None]}, r"answers\[1\] is None; give a text"),
        ({"questions": ["a", "b"], "answers": [float("nan"), 1]}, r"answers\[0\] is nan; give a text"),
        (
            {"questions": ["a"], "labels": {"difficulty": ["easy"]}},
            r"labels\['difficulty'\]\[0\] is 'easy'; give a number",
        ),
        ({"questions": ["a"], "labels": [1.0]}, "labels is a list; write numbers by name"),
        ({"questions": ["a"], "answers": "1"}, "answers is '1'; give a list"),
        ({"questions": pd.DataFrame({"q": ["a"]})}, "questions is a table; give one column of it, or .* FramePrompts"),
        ({"questions": ["a", "b"], "answers": ["1"]}, "answers has 1 entries for 2 questions; give as many"),
        ({"questions": []}, "questions is empty"),
    ],
)
def test_lists_that_would_be_taken_wrongly_are_refused(given, said):
    with pytest.raises(InputError, match=f"ListPrompts.{said}"):
        ListPrompts(**given)


def test_prompts_without_answers_are_prompts_and_rewards_that_compare_refuse_them():
    """Data for a judge, a reward model or a format has none; with MathReward every grade would be 0."""
    read = open_prompts(
        [{"prompt": "Write a poem.", "style": "short"}, {"prompt": "And another.", "style": "long"}]
    ).read()
    assert [(each.text, each.answer) for each in read.prompts] == [("Write a poem.", ""), ("And another.", "")]
    assert read.said[0].startswith("frame: 2 rows read as prompts without answers: prompt from prompt; other columns")
    FormatReward(".+").require(read.prompts)
    for reward in (MathReward(), AnswerReward()):
        with pytest.raises(InputError, match=r"'frame/0' has no answer, and (Math|Answer)Reward compares with it"):
            reward.require(read.prompts)
    mapped = open_prompts([{"riddle": "1 + 1?", "gold": "2"}], {"prompt": "riddle", "answer": "gold"}).read()
    assert mapped.said == ("frame: 1 row read as mapped columns: prompt from riddle, answer from gold",)
