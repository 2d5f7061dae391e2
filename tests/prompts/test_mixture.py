"""Several sources become one pool by weights or counts, and repeats are told."""

import json

import datasets
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.hub import HubPrompts
from saerl_lightning.prompts.mixture import Mixture, Part, open_prompts, shares


@pytest.fixture
def pools(tmp_path):
    """Files of ten sums and of four products, with the same ids."""
    for name, count in (("sums", 10), ("times", 4)):
        rows = [{"id": str(i), "prompt": f"{name} {i}?", "answer": str(i)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("sums", "times")}


def drawn(prompts, source):
    return [prompt.answer for prompt in prompts if prompt.source == source]


def test_without_shares_all_prompts_are_taken_once(pools):
    reading = Mixture(dict(pools)).read()
    assert [prompt.uid for prompt in reading.prompts] == [f"sums/{i}" for i in range(10)] + [
        f"times/{i}" for i in range(4)
    ]
    assert reading.said[0].startswith("sums: ") and "10 rows read as" in reading.said[0]
    assert reading.said[-1] == "mixture of 14 prompts: sums 10 of 10, times 4 of 4"


def test_weights_without_a_size_take_as_many_as_they_can_without_a_repeat(pools):
    parts = {"sums": Part(pools["sums"], weight=1), "times": Part(pools["times"], weight=2)}
    prompts = Mixture(parts).load()
    assert (len(drawn(prompts, "sums")), len(drawn(prompts, "times"))) == (2, 4)  # 2 : 4 = 1 : 2, all of `times`
    assert drawn(prompts, "times") == ["0", "1", "2", "3"]
    assert Mixture(parts).load() == prompts
    assert drawn(Mixture(parts, seed=1).load(), "sums") != drawn(prompts, "sums")


def test_repeats_are_copies_with_uids_of_their_own_and_are_told(pools):
    parts = {"sums": Part(pools["sums"], count=3), "times": Part(pools["times"], weight=1)}
    reading = Mixture(parts, size=13).read()
    copies = [prompt for prompt in reading.prompts if prompt.source == "times"]
    assert len(copies) == 10 and len({prompt.uid for prompt in reading.prompts}) == 13
    # Ten of four: each twice, and two of them once more.
    assert sorted(copies.count(each) + 1 for each in copies[:4]) == [2, 2, 2, 2]
    times = [sum(prompt.text == f"times {i}?" for prompt in copies) for i in range(4)]
    assert sorted(times) == [2, 2, 3, 3]
    assert copies[4].uid == "times/0 (again 1)" and copies[4].copied_from == "times/0" and not copies[0].copied_from
    assert reading.said[-1] == "mixture of 13 prompts: sums 3 of 10, times 10 of 4 (6 of them repeats)"


def test_shares_by_hand():
    parts = {"a": Part("a", weight=1), "b": Part("b", weight=1), "c": Part("c", weight=1), "d": Part("d", count=2)}
    held = {"a": 9, "b": 9, "c": 5, "d": 9}
    assert shares(parts, held, 12) == {"a": 4, "b": 3, "c": 3, "d": 2}  # 10 in three parts: the remainder to the first
    assert shares(parts, held, None) == {"a": 5, "b": 5, "c": 5, "d": 2}
    two = {"a": Part("a", weight=1), "b": Part("b", weight=2)}
    assert shares(two, {"a": 9, "b": 9}, 10) == {"a": 3, "b": 7}  # 3.33 and 6.67
    parts = {"a": Part("a", weight=0.3), "b": Part("b", weight=0.1), "c": Part("c", weight=0)}
    assert shares(parts, {"a": 3, "b": 1, "c": 5}, None) == {"a": 3, "b": 1, "c": 0}  # not spoiled by rounding


REFUSED = {
    "weights of 0": ({"a": Part("x", weight=0), "b": Part("y", weight=0.0)}, {}, "parts a, b sum to 0; write a weight"),
    "no part": ({}, {}, "a mixture without a part"),
    "a size to be filled by nothing": ({"a": Part("x", count=1)}, {"size": 3}, "size 3 and no part with a weight"),
    "a name that is a path": ({"../a": "x"}, {}, r"the part of a mixture '\.\./a'"),
    "a size below the counts": ({"a": Part("x", count=1)}, {"size": 0}, "Mixture.size is 0"),
    "a file that is not there": ({"a": "gone.jsonl"}, {}, r"gone\.jsonl does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mixture_of_nothing_is_refused(case):
    parts, settings, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        Mixture(parts, **settings).load()


def test_impossible_shares_are_refused(pools):
    with pytest.raises(InputError, match=r"Part\.weight is 1, with a count of 2; write one of the two"):
        Part("x", weight=1, count=2)
    with pytest.raises(InputError, match=r"weight is -1"):
        Part("x", weight=-1)
    with pytest.raises(InputError, match=r"size is 5, and its parts without a weight have 10 prompts"):
        Mixture({"sums": pools["sums"], "times": Part(pools["times"], weight=1)}, size=5).load()
    with pytest.raises(InputError, match="no prompt: every part has count 0"):
        Mixture({"sums": Part(pools["sums"], count=0)}).load()


def test_columns_of_a_part_stand_before_those_of_the_mixture(tmp_path, pools):
    (tmp_path / "other.jsonl").write_text('{"riddle": "r?", "gold": "1"}')
    parts = {
        "sums": Part(pools["sums"], columns={}),
        "other": Part(str(tmp_path / "other.jsonl")),
    }
    prompts = Mixture(parts, columns={"prompt": "riddle", "answer": "gold"}).load()
    assert [prompt.text for prompt in prompts][-1] == "r?" and len(prompts) == 11


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("pool.jsonl", FilePrompts),
        ("owner/pool.csv", FilePrompts),
        ("owner/name", HubPrompts),
        ("a/b/c", FilePrompts),
        ("pool", FilePrompts),
        ("folder", HubPrompts),
        ("saved", FilePrompts),
        ("owner/here", FilePrompts),
        ({"a": "x.jsonl"}, Mixture),
        (FilePrompts("x"), FilePrompts),
    ],
)
def test_what_stands_for_prompts(tmp_path, monkeypatch, given, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    datasets.Dataset.from_list([{"prompt": "a", "answer": "1"}]).save_to_disk("saved")
    datasets.Dataset.from_list([{"prompt": "a", "answer": "1"}]).save_to_disk("owner/here")
    opened = open_prompts(given, {"prompt": "q"})
    assert type(opened) is source
    assert given is opened or opened.columns == {"prompt": "q"}
