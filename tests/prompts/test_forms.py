"""Data sets in others' forms are recognised by their columns, in every kind of file, and keep all columns for rewards."""

import copy
import datetime
import json
import pickle
from decimal import Decimal
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from saerl_lightning.errors import InputError
from saerl_lightning.mistakes import printed
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.forms import last_box, value_at

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"}]
# form -> a row as its makers write it, and what the prompt must be: text, answer, source, topic, labels
FORMS = {
    "GSM8K": (
        {"question": "How many clips?", "answer": "She sold 72 #### clips.\n#### 1,072"},
        ("How many clips?", "1072", "pool", None, {}),
    ),
    "MATH": (
        {
            "problem": "Halve $x=1$.",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"First $\boxed{3}$, no: $\boxed{\frac{1}{2}}$.",
        },
        ("Halve $x=1$.", r"\frac{1}{2}", "pool", "Algebra", {"level": 5.0}),
    ),
    "MATH with answers": (
        {"problem": "Halve 1.", "solution": r"\boxed{0.5}", "answer": "0.5", "subject": "Algebra", "level": 2},
        ("Halve 1.", "0.5", "pool", "Algebra", {"level": 2.0}),
    ),
    "DeepMath": (
        {"question": "Is it so?", "final_answer": "Yes", "difficulty": 4.5, "topic": "Logic", "r1_solution_1": "long"},
        ("Is it so?", "Yes", "pool", "Logic", {"difficulty": 4.5}),
    ),
    "TRL": (
        {"prompt": "What is 6 * 7?", "solution": r"It is $\boxed{42}$", "difficulty": "hard"},
        ("What is 6 * 7?", "42", "pool", None, {}),
    ),
    "TRL conversational": (
        {"prompt": CHAT, "ground_truth": "42", "task": "times"},
        ("What is 6 * 7?", "42", "pool", None, {}),
    ),
    "verl": (
        {
            "data_source": "openai/gsm8k",
            "prompt": CHAT[1:],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "42"},
            "extra_info": {"split": "train", "index": 0, "answer": "#### 42"},
        },
        ("What is 6 * 7?", "42", "openai/gsm8k", "math", {}),
    ),
    "open-instruct": (
        {
            "messages": [*CHAT, {"role": "assistant", "content": "It is 42."}],
            "ground_truth": "42",
            "dataset": "gsm8k",
        },
        ("What is 6 * 7?", "42", "gsm8k", None, {}),
    ),
    "ours": (
        {"id": "a", "prompt": "1+1?", "answer": "2", "level": 1, "source": "sums"},
        ("1+1?", "2", "sums", None, {"level": 1.0}),
    ),
}
FLAT = {"GSM8K", "MATH", "MATH with answers", "DeepMath", "TRL", "ours"}


def saved(rows, folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder


def saved_splits(rows, folder: Path) -> Path:
    data = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder)
    return folder


def written(rows, file: Path, write) -> Path:
    write(rows, file)
    return file


def _arrow(rows, file):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


WRITERS = {
    "pool.jsonl": lambda rows, f: written(rows, f, lambda r, f: f.write_text("\n".join(map(json.dumps, r)))),
    "pool.json": lambda rows, f: written(rows, f, lambda r, f: f.write_text(json.dumps(r, indent=1))),
    "pool.parquet": lambda rows, f: written(rows, f, lambda r, f: parquet.write_table(pa.Table.from_pylist(r), f)),
    "pool.arrow": lambda rows, f: written(rows, f, _arrow),
    "pool.csv": lambda rows, f: written(rows, f, lambda r, f: pd.DataFrame(r).to_csv(f, index=False)),
    "pool.tsv": lambda rows, f: written(rows, f, lambda r, f: pd.DataFrame(r).to_csv(f, index=False, sep="\t")),
    "pool": saved,
    "pool ": saved_splits,
}
CASES = [(form, file) for form in FORMS for file in WRITERS if form in FLAT or not file.endswith("sv")]


@pytest.mark.parametrize(("form", "file"), CASES)
def test_a_form_is_recognised_in_every_kind_of_file(tmp_path, form, file):
    row, expected = FORMS[form]
    place = WRITERS[file]([row, {**row, "id": "b"} if "id" in row else row], tmp_path / file.strip())
    reading = FilePrompts(str(place)).read()
    prompt, second = reading.prompts
    assert (prompt.text, prompt.answer, prompt.source, prompt.topic, dict(prompt.labels)) == expected
    assert prompt.uid == ("a" if form == "ours" else f"{expected[2]}/0") and second.uid != prompt.uid
    (line,) = reading.said
    name = {"MATH with answers": "question and answer", "ours": "prompt and answer"}.get(form, form.split()[0])
    assert f"2 rows read as {name}" in line
    kept = {name: None if value is None else str(value) for name, value in row.items()}
    assert {name: str(value) for name, value in prompt.columns.items()} == kept
    assert prompt.columns == prompt.columns and type(pickle.loads(pickle.dumps(prompt.columns))) is dict
    assert copy.deepcopy(prompt.columns) == dict(prompt.columns)


def read(tmp_path, *rows, name="pool.jsonl", **settings):
    return FilePrompts(str(WRITERS[name](list(rows), tmp_path / name)), **settings).read()


def test_the_line_says_what_is_read_from_where_and_what_is_left(tmp_path):
    (line,) = read(tmp_path, FORMS["verl"][0], name="pool.parquet").said
    assert line == (
        f"{tmp_path}/pool.parquet: 1 row read as verl: prompt from prompt, answer from reward_model.ground_truth, topic "
        "from ability, source from data_source; other columns, which rewards can read: extra_info"
    )


def test_rows_that_fit_two_forms_are_read_as_one_and_it_is_said(tmp_path):
    row = {"prompt": "1+1?", "answer": "2", "solution": r"\boxed{3}"}
    reading = read(tmp_path, row)
    assert reading.prompts[0].answer == "2"
    assert "read as prompt and answer" in reading.said[0]
    assert "they fit TRL too (prompt from prompt, answer from solution (its last box, if any))" in reading.said[0]
    chosen = read(tmp_path, row, columns={"answer": "solution"})
    assert chosen.prompts[0].answer == r"\boxed{3}" and "they fit" not in chosen.said[0]


def test_columns_lead_into_nested_columns(tmp_path):
    row = {"turns": [{"text": "1+1?"}], "meta": {"gold": {"value": 2}, "kind": "sums"}, "a.b": "z"}
    columns = {"prompt": "turns.0.text", "answer": "meta.gold.value", "topic": "meta.kind", "source": "a.b"}
    for name in ("pool.jsonl", "pool.parquet"):
        (prompt,) = read(tmp_path, row, name=name, columns=columns).prompts
        assert (prompt.text, prompt.answer, prompt.topic, prompt.source) == ("1+1?", "2", "sums", "z")
    assert value_at({"a": [1]}, "a.1") is None and value_at({"a": 1}, "a.b") is None
    # Only what differs from the form is mapped.
    verl = FORMS["verl"][0]
    (prompt,) = read(tmp_path, verl, columns={"topic": "extra_info.split"}).prompts
    assert (prompt.answer, prompt.topic) == ("42", "train")


def test_an_unknown_form_shows_the_first_row_and_the_flags(tmp_path):
    row = {"riddle": "Who\nam I? " * 30, "gold": 4, **{f"more{i}": i for i in range(9)}}
    with pytest.raises(InputError) as refused:
        read(tmp_path, row)
    said = str(refused.value)
    assert (
        "no known form (no prompt and no answer); its first row: riddle='Who am I? Who am I? Who am I?…', gold='4'"
        in said
    )
    assert (
        "and 5 more; say which columns these are, as --data.columns.prompt riddle --data.columns.answer more8" in said
    )
    assert "\n" not in said and len(printed(said)) < 600


ROWS = {
    "a row of GSM8K without its mark": (
        "GSM8K",
        {"answer": "72"},
        r"pool\.jsonl:2: 'answer' does not say its answer as",
    ),
    "a row of MATH without its box": (
        "MATH",
        {"solution": "no box"},
        r"pool\.jsonl:2: 'solution' does not say its answer",
    ),
    "no ground truth": (
        "verl",
        {"reward_model": {}},
        r"pool\.jsonl:2: no answer in column 'reward_model.ground_truth'",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_of_another_form_is_refused_at_its_place(tmp_path, case):
    form, change, message = ROWS[case]
    with pytest.raises(InputError, match=message):
        read(tmp_path, FORMS[form][0], {**FORMS[form][0], **change})


def test_a_column_of_parquet_is_read_when_it_is_asked_for(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": str(i), "long": {"n": [i]}} for i in range(2500)]
    prompts = read(tmp_path, *rows, name="pool.parquet").prompts
    assert [prompts[i].columns["long"] for i in (0, 2499)] == [{"n": [0]}, {"n": [2499]}]
    fresh = FilePrompts(str(tmp_path / "pool.parquet"), limit=3).load()
    parquet.write_table(pa.table({"prompt": ["other"], "answer": ["x"], "long": [1]}), tmp_path / "pool.parquet")
    with pytest.raises(InputError, match="has changed since its prompts were read, and its column 'long' is wanted"):
        fresh[0].columns["long"]
    assert prompts[7].columns["long"] == {"n": [7]}  # was read before
    with pytest.raises(KeyError):
        fresh[0].columns["none"]


def test_values_of_a_table_have_the_types_of_json(tmp_path):
    row = {
        "prompt": "a",
        "answer": "1",
        "day": datetime.date(2024, 5, 1),
        "nested": [{"n": Decimal("1.5")}],
        "score": 0.5,
    }
    (prompt,) = read(tmp_path, row, name="pool.parquet").prompts
    assert dict(prompt.columns) == {**row, "day": "2024-05-01", "nested": [{"n": "1.5"}]}


def test_a_mapped_prompt_stands_before_messages_of_the_form(tmp_path):
    row = {"messages": CHAT, "question": "q?", "answer": "1"}
    assert read(tmp_path, row).prompts[0].text == "What is 6 * 7?"
    assert read(tmp_path, row, columns={"prompt": "question"}).prompts[0].text == "q?"


def test_a_mapped_column_may_begin_late_in_the_file(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": "1", **({"tag": "late"} if i == 150 else {})} for i in range(151)]
    assert read(tmp_path, *rows, columns={"topic": "tag"}).prompts[150].topic == "late"
    with pytest.raises(InputError, match="columns maps 'topic' to 'tags', which"):
        read(tmp_path, *rows, columns={"topic": "tags"})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{\frac{a}{b}}$.", r"\frac{a}{b}"),
        (r"\boxed{1} then \fbox{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed 5$", "5"),
        ("none", None),
    ],
)
def test_the_last_closed_box(text, answer):
    assert last_box(text) == answer


# -- tables of text ---------------------------------------------------------------------------------------------------


def test_cells_stay_texts_and_may_hold_separators_quotes_and_line_ends(tmp_path):
    cells = [{"prompt": 'a, "b"\nc', "answer": "007", "note": None}, {"prompt": "é", "answer": "1e-5", "note": "x"}]
    pd.DataFrame(cells).to_csv(tmp_path / "pool.csv", index=False, encoding="utf-8-sig")
    first, second = FilePrompts(str(tmp_path / "pool.csv")).load()
    assert (first.text, first.answer, second.text, second.answer) == ('a, "b"\nc', "007", "é", "1e-5")
    assert (first.columns["note"], second.columns["note"]) == (None, "x")


CELLS = {
    "too many": ("prompt,answer\na,1\nb,2,3\n", r"pool\.csv:3: 3 cells under a header of 2; quote cells"),
    "too few": ("prompt,answer\n\na,1\nb\n", r"pool\.csv:4: 1 cells under a header of 2"),
    "after a cell of two lines": ('prompt,answer\n"a\nb",1\nb\n', r"pool\.csv:4: 1 cells"),
    "an open quote": ('prompt,answer\n"a,1\nb,2\n', r"pool\.csv: unexpected end of data"),
    "one name twice": ("prompt,answer,answer\na,1,2\n", "two columns have the name 'answer'"),
    "no answer": ("prompt,answer\na,\n", r"pool\.csv:2: no answer in column 'answer'"),
    "only a header": ("prompt,answer\n", "is empty"),
    "bars": ("prompt|answer\na|1\n", r"no known form .*; its first row: prompt\|answer='a\|1'"),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_table_of_text_that_is_not_one_is_refused(tmp_path, case):
    text, message = CELLS[case]
    (tmp_path / "pool.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        FilePrompts(str(tmp_path / "pool.csv")).load()


@pytest.mark.parametrize(("mark", "cell"), [(";", "a, b"), ("\t", "a; b")])
def test_tables_of_spreadsheets_are_read_whatever_mark_they_write(tmp_path, mark, cell):
    (tmp_path / "pool.csv").write_text(f"prompt{mark}answer\n{cell}{mark}1,5\n", encoding="utf-8-sig")
    (prompt,) = FilePrompts(str(tmp_path / "pool.csv")).load()
    assert (prompt.text, prompt.answer) == (cell, "1,5")


def test_a_semicolon_in_a_header_with_commas_is_a_letter(tmp_path):
    (tmp_path / "pool.csv").write_text('prompt,answer,"more; or less"\na;b,1,2\n')
    (prompt,) = FilePrompts(str(tmp_path / "pool.csv")).load()
    assert (prompt.text, prompt.answer, prompt.columns["more; or less"]) == ("a;b", "1", "2")


def test_the_flags_of_an_unknown_form_lead_into_conversations_and_read_them(tmp_path):
    turns = [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}]
    with pytest.raises(InputError) as refused:
        read(tmp_path, {"conversations": turns})
    flags = "--data.columns.prompt conversations.0.value --data.columns.answer conversations.1.value"
    assert flags in str(refused.value)
    columns = {"prompt": "conversations.0.value", "answer": "conversations.1.value"}
    (prompt,) = read(tmp_path, {"conversations": turns}, columns=columns).prompts
    assert (prompt.text, prompt.answer) == ("What is 1 + 1?", "2")
    with pytest.raises(InputError) as refused:
        read(tmp_path, {"text": "What is 1 + 1?"})
    assert "--data.columns.prompt text (in YAML" in str(refused.value)  # one column is not both


def test_a_cell_may_be_longer_than_csv_allows_by_itself(tmp_path):
    (tmp_path / "pool.csv").write_text("prompt,answer,solution\na,1," + "x" * 200_000 + "\n")
    (prompt,) = FilePrompts(str(tmp_path / "pool.csv")).load()
    assert len(str(prompt.columns["solution"])) == 200_000


def test_json_lines_in_a_json_file_are_read(tmp_path):
    (tmp_path / "pool.json").write_text('\n{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2"}\n')
    assert [prompt.text for prompt in FilePrompts(str(tmp_path / "pool.json")).load()] == ["a", "b"]
    (tmp_path / "pool.json").write_text('[{"prompt": "a", "answer": "1"}, 7]')
    with pytest.raises(InputError, match=r"pool\.json, entry 2: 7; write a list of objects"):
        FilePrompts(str(tmp_path / "pool.json")).load()


# -- saved data sets --------------------------------------------------------------------------------------------------

SUMS = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(4)]


def test_a_saved_data_set_in_several_files_keeps_its_order(tmp_path):
    datasets.Dataset.from_list(SUMS).save_to_disk(tmp_path / "pool", num_shards=3)
    assert [prompt.answer for prompt in FilePrompts(str(tmp_path / "pool")).load()] == ["1", "2", "3", "4"]
    assert len(FilePrompts(str(tmp_path / "pool"), limit=2).load()) == 2
    shuffled = datasets.load_from_disk(tmp_path / "pool").select([3, 0])
    shuffled.save_to_disk(tmp_path / "chosen")
    assert [prompt.answer for prompt in FilePrompts(str(tmp_path / "chosen")).load()] == ["4", "1"]


def test_a_split_is_named_or_obvious(tmp_path):
    data = datasets.Dataset.from_list(SUMS)
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"test": data.select([1])}).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": data, "test": data}).save_to_disk(tmp_path / "none")
    assert len(FilePrompts(str(tmp_path / "two")).load()) == 4
    assert FilePrompts(str(tmp_path / "two"), split="test").load()[0].answer == "3"
    assert FilePrompts(str(tmp_path / "two" / "test")).load()[0].answer == "3"
    assert FilePrompts(str(tmp_path / "one")).load()[0].answer == "2"
    with pytest.raises(InputError, match=f"not obvious; name one of dev, test, as {tmp_path}/none/dev"):
        FilePrompts(str(tmp_path / "none")).load()
    with pytest.raises(InputError, match="there is no split 'dev'; name one of test, train"):
        FilePrompts(str(tmp_path / "two"), split="dev").load()
    with pytest.raises(InputError, match="has no splits, and split is 'x'"):
        read(tmp_path, *SUMS, split="x")


def test_a_saved_data_set_can_not_name_files_outside_itself(tmp_path):
    """A state that names a file elsewhere is refused, folders of splits are looked for, and no link is read."""
    secret, pool = saved(SUMS, tmp_path / "secret"), saved(SUMS, tmp_path / "pool")
    file, state = pool / "data-00000-of-00001.arrow", json.loads((pool / "state.json").read_text())
    state["_data_files"] = [{"filename": f"../secret/{file.name}"}]
    (pool / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"holds 1 Arrow files, and not the 1 that its state\.json lists"):
        FilePrompts(str(pool)).load()
    state["_data_files"] = [{"filename": file.name}]
    (pool / "state.json").write_text(json.dumps(state))
    file.unlink()
    file.symlink_to(secret / file.name)
    with pytest.raises(InputError, match="is no plain file"):
        FilePrompts(str(pool)).load()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(InputError, match="has no split"):
        FilePrompts(str(tmp_path / "splits")).load()


def test_a_missing_file_of_a_saved_data_set_is_noticed(tmp_path):
    datasets.Dataset.from_list(SUMS).save_to_disk(tmp_path / "pool", num_shards=2)
    (tmp_path / "pool" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match="holds 1 Arrow files, and not the 2"):
        FilePrompts(str(tmp_path / "pool")).load()
