"""The ledger's file is what was planned, whole, and nothing else is taken for one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.ledger import COLUMNS, Ledger, excerpt, require_place, write_plan
from saerl_lightning.plan_page.served import RATES, WHOLE, Served
from saerl_lightning.records import Prompt


def test_what_is_written_is_read_back(planned, tmp_path):
    planned.ledger.write(tmp_path / "ledger.parquet")
    read = Ledger.read(tmp_path / "ledger.parquet")
    assert (read.digest, read.batch_size, read.batches) == ("0123456789abcdef", 4, 14)
    for name in COLUMNS:
        np.testing.assert_array_equal(read.column(name), planned.ledger.column(name), err_msg=name)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.parquet"]


def test_the_file_tells_every_fate_to_any_reader_of_parquet(planned, tmp_path):
    planned.ledger.write(tmp_path / "ledger.parquet")
    table = parquet.read_table(tmp_path / "ledger.parquet")
    assert table.column_names == COLUMNS
    rows = {row["uid"]: row for row in table.to_pylist()}
    assert rows["p0"]["fate"] == "dropped" and rows["p0"]["reason"].startswith("rated below")
    assert rows["p2"] | {"text": ""} == {
        "row": 2, "uid": "p2", "fate": "served", "reason": "", "cluster": 2, "difficulty": 2.0, "quality": 2 / 60,
        "batch": 0, "mixed_from": -1, "topic": "", "text": "",
    }  # fmt: skip
    assert rows["p6"]["batch"] == 1 and rows["p6"]["mixed_from"] == 2
    assert (rows["p59"]["fate"], rows["p59"]["batch"]) == ("not served", -1)  # 58 planned prompts fill 14 batches of 4
    about = json.loads(table.schema.metadata[b"saerl_lightning"])
    assert about["digest"] == "0123456789abcdef" and about["batch_size"] == 4 and "numpy" in about["versions"]


def served_by(uids) -> Served:
    """A run's file in which the n-th prompt was served n times, with one of eight answers right each time."""
    n = np.arange(len(uids))
    texts = {"uid": np.array(uids, object), "why": np.array(["too easy"] * len(uids), object)}
    columns = dict.fromkeys(WHOLE, n) | dict.fromkeys(RATES, n / 8) | {"graded": n * 8.0} | texts
    return Served(columns, np.zeros((0, 4)), np.zeros((10, 3)))


def test_the_ledger_of_a_run_tells_what_was_served(planned, tmp_path):
    planned.ledger.write(tmp_path / "ledger.parquet")
    assert list(Ledger.read(tmp_path / "ledger.parquet").to_pandas()) == COLUMNS
    served_by([f"p{i}" for i in range(60)]).write(tmp_path / "served.parquet")
    frame = Ledger.read(tmp_path / "ledger.parquet").to_pandas().set_index("uid")
    assert frame.loc["p7", ["fate", "times_served", "groups", "right", "graded", "waits", "why"]].tolist() == [
        planned.ledger.fate[7], 7, 7, 0.875, 56.0, 7, "too easy",
    ]  # fmt: skip
    assert {"tokens", "last_step", "pass_rate_predicted", "pass_rate_sd", "chance_predicted"} < set(frame)
    assert len(frame) == 60 and frame.index.tolist() == planned.ledger.uid.tolist()


@pytest.mark.parametrize("uids", [["p1", "p0"], [f"q{i}" for i in range(60)], [f"p{59 - i}" for i in range(60)]])
def test_a_ledger_beside_what_another_pool_served_is_refused(planned, tmp_path, uids):
    planned.ledger.write(tmp_path / "ledger.parquet")
    served_by(uids).write(tmp_path / "served.parquet")
    with pytest.raises(InputError, match=rf"is of another pool \({len(uids)} prompts\) than .* \(60 prompts\)"):
        Ledger.read(tmp_path / "ledger.parquet")


def test_texts_that_no_file_can_hold_are_mended(tmp_path):
    """Broken JSON escapes leave half characters in a text."""
    broken = Prompt.asking("p\ud800", "a\ud800 b", "1", topic="\udfff")
    Ledger.of(SamplePlan.sequential(1, 1), [broken], "d").write(tmp_path / "l")
    read = Ledger.read(tmp_path / "l")
    assert [read.uid[0], read.topic[0], read.text[0]] == ["p?", "?", "a? b"]


def test_an_excerpt_is_one_line_of_its_length():
    assert excerpt("one\n two\tthree") == "one two three"
    assert excerpt("abcdefghij", 5) == "abcd…" and excerpt("abcde", 5) == "abcde"
    assert len(excerpt("word " * 1000)) == 200


def test_a_file_that_is_no_ledger_is_refused(planned, tmp_path):
    path = tmp_path / "ledger.parquet"
    with pytest.raises(InputError, match="is no file"):
        Ledger.read(path)
    planned.ledger.write(path)
    whole = path.read_bytes()
    for broken in (b"", b"PAR1 nothing PAR1", whole[: len(whole) // 2], whole[: len(whole) // 2] + whole[-200:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="no readable parquet"):
            Ledger.read(path)
    table = pa.table({"uid": ["a"]})
    parquet.write_table(table, path)
    with pytest.raises(InputError, match="no ledger: it lacks columns batch, cluster"):
        Ledger.read(path)


def test_a_ledger_of_another_format_is_refused(planned, tmp_path):
    path = tmp_path / "ledger.parquet"
    planned.ledger.write(path)
    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata({"saerl_lightning": json.dumps({"format": 99})}), path)
    with pytest.raises(InputError, match="format 99"):
        Ledger.read(path)
    parquet.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(InputError, match="the mark of a ledger"):
        Ledger.read(path)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_new_folder_appears_whole_or_not_at_all(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(Ledger, "write", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_plan(tmp_path / "plan", planned.ledger, "<p>")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_plan(tmp_path / "deep" / "plan", planned.ledger, "<p>")
    assert sorted(path.name for path in (tmp_path / "deep/plan").iterdir()) == ["ledger.parquet", "plan.html"]


def test_a_plan_folder_is_replaced_and_what_else_is_in_it_stays(planned, tmp_path):
    write_plan(tmp_path / "plan", planned.ledger, "old")
    (tmp_path / "plan/notes.txt").write_text("mine")
    write_plan(tmp_path / "plan", planned.ledger, "new")
    assert (tmp_path / "plan/plan.html").read_text() == "new"
    assert (tmp_path / "plan/notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "plan").iterdir())) == 3


def test_a_file_and_a_runs_own_record_are_not_written_over(planned, tmp_path):
    (tmp_path / "file").write_text("")
    planned.ledger.write(tmp_path / "ledger.parquet")  # as in a run folder
    for place, says in ((tmp_path / "file", "is a file"), (tmp_path, "record of what was trained")):
        with pytest.raises(InputError, match=says):
            require_place(place)


def test_a_frame_has_a_row_a_prompt(planned):
    frame = planned.ledger.to_pandas()
    assert list(frame.columns) == COLUMNS and len(frame) == 60
    assert frame.loc[2, ["uid", "fate", "reason", "cluster", "difficulty", "batch"]].tolist() == [
        "p2", "served", "", 2, 2.0, 0,
    ]  # fmt: skip
    assert str(frame.difficulty.dtype) == "float64" and str(frame.batch.dtype) == "int64"
    assert frame.loc[59, "batch"] == -1


def test_a_path_may_be_a_text(planned, tmp_path):
    planned.ledger.write(str(tmp_path / "l.parquet"))
    assert len(Ledger.read(str(tmp_path / "l.parquet"))) == 60


def test_a_ledger_knows_its_digest():
    """The digest of the plan is that of the order and the texts: another order has another."""
    prompts = [Prompt.asking(f"p{i}", f"{i}?", str(i)) for i in range(4)]
    plan = SamplePlan.sequential(4, 2)
    other = plan.reorder(np.array([1, 0, 2, 3]))
    assert Ledger.of(plan, prompts).digest == Ledger.of(plan, prompts).digest != Ledger.of(other, prompts).digest
    assert len(Ledger.of(plan, prompts).digest) == 16


def test_a_ledger_is_shown_in_a_line(planned):
    assert repr(planned.ledger) == (
        "<Ledger 0123456789abcdef: 60 prompts, 56 served, 2 not served, 2 dropped, in 14 batches of 4>"
    )
