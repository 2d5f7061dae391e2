"""Broken prompts and labels files are refused in one line that says what is wrong, whatever is wrong with them."""

import json
import os
import re

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.labels import read_labels

GOOD = '{"id": "a", "prompt": "1 + 1?", "answer": "2"}\n'
HALF = r"\ud800"  # as JSON writes a lone surrogate

PROMPTS = {
    "half a character in the prompt": (f'{{"prompt": "a{HALF}", "answer": "2"}}', "train.jsonl:2: .*half a character"),
    "in the answer": (f'{{"prompt": "a", "answer": "{HALF}"}}', "train.jsonl:2: .*half a character"),
    "in the id": (f'{{"id": "{HALF}", "prompt": "a", "answer": "2"}}', "half a character"),
    "in the topic": (f'{{"prompt": "a", "answer": "2", "topic": "{HALF}"}}', "half a character"),
    "in a message": (f'{{"messages": [{{"role": "user", "content": "{HALF}"}}], "answer": "2"}}', "half a character"),
    "deep": ('{"prompt": ' + "[" * 100_000, "train.jsonl:2: JSON nested too deeply"),
    "digits": ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "train.jsonl:2: a number of thousands of digits"),
    "a huge label": ('{"prompt": "a", "answer": "2", "level": 1' + "0" * 400 + "}", "is a whole number beyond all floats"),
}  # fmt: skip


def refusal(path) -> str:
    with pytest.raises(InputError) as refused:
        FilePrompts(str(path)).load()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("line", "says"), PROMPTS.values(), ids=PROMPTS)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, says):
    file = tmp_path / "train.jsonl"
    file.write_text(GOOD + line + "\n")
    assert re.search(says, refusal(file))


def test_other_forms_are_named_with_the_forms_that_are_read(tmp_path):
    file = tmp_path / "train.xlsx"
    file.write_text("prompt,answer\n1 + 1?,2\n")
    said = refusal(file)
    assert "ends in '.xlsx'" in said and '{"prompt": ..., "answer": ...}' in said
    assert all(ending in said for ending in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_other_forms_of_labels_are_named_with_the_one_that_is_read(tmp_path, ending):
    file = tmp_path / f"labels{ending}"
    file.write_text("uid,difficulty\na,40\n")
    with pytest.raises(InputError, match=f"ends in '{ending}'; labels are JSON lines"):
        read_labels(str(file))


def test_utf_16_is_refused(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(GOOD.encode("utf-16"))
    assert "is not UTF-8 text" in refusal(file)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    assert "is no file but a pipe" in refusal(tmp_path / "train.jsonl")


@pytest.mark.parametrize("at", ["head", "middle", "foot", "cut"])
def test_a_corrupt_parquet_file_is_refused(tmp_path, at):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = tmp_path / "train.parquet"
    rows = {"prompt": [f"what is {i}?" * 9 for i in range(300)], "answer": [str(i) for i in range(300)]}
    parquet.write_table(pa.table(rows), file, compression="snappy", use_dictionary=False)
    whole = bytearray(file.read_bytes())
    place = {"head": 4, "middle": len(whole) // 3, "foot": len(whole) - 120, "cut": None}[at]
    file.write_bytes(whole[: len(whole) // 2] if place is None else whole[:place] + b"\xff" * 60 + whole[place + 60 :])
    assert "is no readable parquet file" in refusal(file)


LABELS = {
    "half a character": (f'{{"uid": "{HALF}", "difficulty": 1}}', "labels.jsonl:2: no uid"),
    "deep": ('{"uid": ' + "[" * 100_000, "labels.jsonl:2: JSON that nobody can read"),
    "digits": ('{"uid": "b", "difficulty": ' + "1" * 5000 + "}", "labels.jsonl:2: JSON that nobody can read"),
}


@pytest.mark.parametrize(("line", "says"), LABELS.values(), ids=LABELS)
def test_a_label_that_cannot_be_used_is_named(tmp_path, line, says):
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"uid": "a", "difficulty": 3}) + "\n" + line + "\n")
    with pytest.raises(InputError, match=says) as refused:
        read_labels(str(file))
    assert len(str(refused.value)) < 300


def test_labels_in_utf_16_are_refused_and_a_number_beyond_all_floats_is_none(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_bytes(json.dumps({"uid": "a"}).encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_labels(str(file))
    file.write_text('{"uid": "a", "difficulty": 1' + "0" * 400 + ', "quality": 1}')
    assert read_labels(str(file)) == {"a": {"quality": 1.0}}
