"""Label files: what is read from them, what is refused, and how a killed measurement goes on."""

import json
import math

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.labels import LabelFile, PassRate, read_labels, with_labels
from saerl_lightning.records import Prompt

SETTINGS = {"policy": "models/a", "seed": 0, "top_p": 1.0}


def pool(count: int = 3) -> list[Prompt]:
    return [Prompt(f"p{i}", (), "1", labels={"level": 2.0, "difficulty": 1.0}) for i in range(count)]


def test_a_pass_rate_and_its_error():
    line = PassRate("p", correct=2.0, samples=8).record()
    assert line == {
        "uid": "p",
        "pass_rate": 0.25,
        "pass_rate_se": math.sqrt(0.25 * 0.75 / 8),
        "difficulty": 75.0,
        "samples": 8,
    }
    assert PassRate("p", 8.0, 8).record()["pass_rate_se"] == 0.0
    assert PassRate("p", 0.0, 0).record()["pass_rate"] is None


def test_numbers_become_labels_and_replace_those_of_the_data(tmp_path):
    file = tmp_path / "labels.jsonl"
    lines = [
        {"uid": "p0", "difficulty": 40, "quality": 0.5, "note": "mine", "checked": True, "level": None},
        {"uid": "elsewhere", "difficulty": 1.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"uid": "p2", "difficulty": NaN}\n')
    labelled = with_labels(pool(), read_labels(str(file)))
    assert [prompt.labels for prompt in labelled] == [
        {"level": 2.0, "difficulty": 40.0, "quality": 0.5},
        {"level": 2.0, "difficulty": 1.0},
        {"level": 2.0, "difficulty": 1.0},
    ]


BROKEN = {
    '{"uid": "p0"}\n{"uid": "p1", "diff': r"labels\.jsonl:2: broken JSON",
    '{"uid": "p0"}\n\n': r"labels\.jsonl:2: broken JSON",
    "[1]\n": r"labels\.jsonl:1: \[1\]; write one object a line",
    '{"difficulty": 3}\n': r"labels\.jsonl:1: no uid",
    '{"uid": "p0"}\n{"uid": "p0"}\n': r"labels\.jsonl:2: uid 'p0' stands here for the second time",
    "": "holds no label",
    '{"measured": {"seed": 0}}\n': "holds no label",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text):
    file = tmp_path / "labels.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=BROKEN[text]):
        read_labels(str(file))


def test_labels_of_other_prompts_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; measure one with `.* label`"):
        read_labels(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError, match=r"none of the 2 uids in 'f' \(first: 'a'\) is among the 3 .* \(first: 'p0'\)"):
        with_labels(pool(), {"a": {}, "b": {}}, "f")


def begun(path, *uids: str) -> LabelFile:
    labels = LabelFile(str(path), SETTINGS)
    assert labels.open() == set()
    labels.append([{"uid": uid, "difficulty": 1.0} for uid in uids])
    return labels


def test_a_file_torn_anywhere_goes_on_with_whole_lines(tmp_path):
    path = tmp_path / "deep" / "labels.jsonl"
    begun(path, "p0", "p1")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = LabelFile(str(path), SETTINGS)
        kept = sum(cut >= len(b"".join(lines[: i + 1])) for i in range(3))
        assert again.open() == {f"p{i}" for i in range(kept - 1)}
        assert path.read_bytes() == b"".join(lines[: max(kept, 1)])


def test_a_file_of_other_settings_is_refused_and_stays_as_it_was(tmp_path):
    path = tmp_path / "labels.jsonl"
    begun(path, "p0")
    before = path.read_bytes()
    other = {"policy": "models/b", "seed": 0, "samples": 4}
    said = "policy 'models/a' there, 'models/b' now; samples None there, 4 now; top_p 1.0 there, None now"
    with pytest.raises(InputError, match=said):
        LabelFile(str(path), other).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ['{"uid": "p0", "difficulty": 3}\n', "a diary\n", "a diary", '{"uid": "p0"}'])
def test_a_file_that_was_not_begun_here_is_left_alone(tmp_path, text):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="name another --out"):
        LabelFile(str(path), SETTINGS).open()
    assert path.read_text() == text
    with pytest.raises(InputError, match="is a folder"):
        LabelFile(str(tmp_path), SETTINGS).open()
