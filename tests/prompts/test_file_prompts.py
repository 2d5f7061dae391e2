"""Files become prompts, and every kind of bad file is refused with its place and the remedy."""

import json
import string
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.file import FilePrompts

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"


def write(path: Path, *records: dict | str) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return str(path)


def good(uid: str = "a", **more) -> dict:
    return {"id": uid, "prompt": "1+1?", "answer": "2", **more}


def test_default_columns(tmp_path):
    record = good("x", topic="Algebra", level="Level 5", difficulty=2.5, quality=None, source="math", extra=[1])
    [prompt] = FilePrompts(write(tmp_path / "p.jsonl", record)).load()
    assert prompt.uid == "x"
    assert prompt.messages == ({"role": "user", "content": "1+1?"},)
    assert (prompt.answer, prompt.topic, prompt.source) == ("2", "Algebra", "math")
    assert prompt.labels == {"level": 5.0, "difficulty": 2.5}


def test_ids_come_from_source_or_file_name_and_the_row(tmp_path):
    records = [{"prompt": "a", "answer": 1}, "", {"prompt": "b", "answer": [0.5, "2"], "source": "gsm"}]
    first, second = FilePrompts(write(tmp_path / "pool.jsonl", *records)).load()
    assert [first.uid, second.uid] == ["pool/0", "gsm/1"]
    assert [first.answer, second.answer] == ["1", "0.5, 2"]


@pytest.mark.parametrize(
    ("level", "expected"), [(3, 3.0), ("4", 4.0), ("Level 2", 2.0), ("Level ?", None), (None, None), ("", None)]
)
def test_a_level_is_read_as_a_number_if_it_is_one(tmp_path, level, expected):
    [prompt] = FilePrompts(write(tmp_path / "p.jsonl", good(level=level))).load()
    assert prompt.labels.get("level") == expected


def test_messages_are_kept_and_a_prompt_may_be_a_list(tmp_path):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    path = write(tmp_path / "p.jsonl", {"messages": chat, "answer": "1"}, {"prompt": chat, "answer": "1"})
    assert [p.messages for p in FilePrompts(path).load()] == [tuple(chat)] * 2


def test_parquet_reads_as_jsonl_does(tmp_path):
    records = [good("a", level=1, topic="t"), good("b", level=None, topic=None)]
    chat = [{"role": "user", "content": "U"}]
    records[1] |= {"messages": chat}
    records[0] |= {"messages": None}
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet")
    jsonl = FilePrompts(write(tmp_path / "p.jsonl", *records)).load()
    assert FilePrompts(str(tmp_path / "p.parquet")).load() == jsonl
    assert FilePrompts(str(tmp_path / "p.parquet"), limit=1).load() == jsonl[:1]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
NUMBER = st.none() | st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(TEXT, TEXT, NUMBER, st.none() | st.text(string.ascii_letters, min_size=1)), min_size=1))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "trip.jsonl"
    lines = [
        json.dumps({"question": q, "gold": a, "difficulty": d, "topic": t}, ensure_ascii=False) for q, a, d, t in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    prompts = FilePrompts(str(path), columns={"prompt": "question", "answer": "gold"}).load()
    assert [(p.text, p.answer, p.labels.get("difficulty"), p.topic) for p in prompts] == rows
    assert len({p.uid for p in prompts}) == len(rows)


BAD_FILES = {
    "empty": ([], {}, "is empty"),
    "blank": (["", "  "], {}, "is empty"),
    "broken line": ([good(), '{"prompt": '], {}, r"p\.jsonl:2: broken JSON"),
    "no object": ([good(), "[1]"], {}, r"p\.jsonl:2: \[1\]; write one object"),
    "empty prompt": ([good(), good("b", prompt=" ")], {}, r"p\.jsonl:2: no prompt"),
    "no prompt": ([good(), {"answer": "2"}], {}, r"p\.jsonl:2: no prompt"),
    "prompt column": (
        [{"riddle": "a", "answer": "2"}],
        {},
        r"no known form \(no prompt\); its first row: riddle='a', answer='2'; .* --data.columns.prompt riddle",
    ),
    "empty answer": ([good(), good("b", answer="")], {}, r"p\.jsonl:2: no answer"),
    "null answer": ([good(answer=None)], {}, r"p\.jsonl:1: no answer"),
    "answer is an object": ([good(answer={"a": 2})], {}, r"p\.jsonl:1: 'answer' is \{'a': 2\}"),
    "duplicate": ([good("x"), "", good("x")], {}, r"'x' stands at p\.jsonl:1 and at p\.jsonl:3"),
    "unknown field": ([good()], {"columns": {"solution": "s"}}, "names the field 'solution'; write one of id, prompt"),
    "missing column": ([good()], {"columns": {"answer": "gold"}}, "'gold', which .* lacks; .* id, prompt, answer"),
    "limit": ([good()], {"limit": 0}, "limit is 0; write a whole number from 1"),
    "message": ([{"messages": [{"text": "hi"}], "answer": "1"}], {}, r"p\.jsonl:1: message {'text': 'hi'}"),
    "leak": (
        [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "2"}], "answer": "2"}],
        {},
        "last message is the assistant's",
    ),
    "level": ([good(level="hard")], {}, r"p\.jsonl:1: 'level' is 'hard'; write a number"),
    "difficulty": ([good(difficulty=[1])], {}, r"p\.jsonl:1: 'difficulty' is \[1\]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path, case):
    lines, arguments, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message):
        FilePrompts(write(tmp_path / "p.jsonl", *lines), **arguments).load()


def test_what_is_no_prompts_file_is_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    (tmp_path / "junk.parquet").write_text("not parquet")
    refusals = {
        "gone.jsonl": "does not exist",
        ".": "is a folder",
        "latin.jsonl": "not UTF-8",
        "junk.parquet": "no readable parquet",
    }
    for name, message in refusals.items():
        with pytest.raises(InputError, match=message):
            FilePrompts(str(tmp_path / name)).load()
    with pytest.raises(InputError, match=r"ends in '\.doc'; prompts are read from \.jsonl.* \.parquet"):
        FilePrompts(write(tmp_path / "p.doc", "a,b")).load()


def test_a_parquet_file_names_all_its_columns(tmp_path):
    parquet.write_table(pa.Table.from_pylist([{"question": "q", "gold": "1", "long": "…"}]), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"its first row: question='q', gold='1', long='…'; .*answer long"):
        FilePrompts(str(tmp_path / "p.parquet")).load()
    [prompt] = FilePrompts(str(tmp_path / "p.parquet"), {"prompt": "question", "answer": "gold"}).load()
    assert (prompt.text, prompt.answer, prompt.uid) == ("q", "1", "p/0")


def test_a_limit_never_reads_further(tmp_path):
    path = write(tmp_path / "p.jsonl", good(), "{broken")
    assert len(FilePrompts(path, limit=1).load()) == 1


@pytest.mark.real
@pytest.mark.skipif(not GSM8K.exists(), reason="the real prompts are not beside the repository")
def test_the_real_gsm8k_file_is_read_whole():
    prompts = FilePrompts(str(GSM8K)).load()
    assert len(prompts) == 7473
    assert prompts[0].uid == "gsm8k/train/0"
    assert prompts[0].answer == "72"
    assert prompts[0].labels == {"level": 2.0}
