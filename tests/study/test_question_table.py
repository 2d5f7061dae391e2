"""The table of questions: what a run writes, and that neither a resume nor a full disk harms it."""

import pandas
import pyarrow.parquet as parquet
import pytest
import torch

from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.training.tables.question_table import add_rows, question_rows


def prompt(uid: str, topic: str | None = None, **labels: float) -> Prompt:
    return Prompt.asking(uid, uid, "1", topic=topic, labels=labels)


def accuracy(prompts: list[Prompt], scores: list[list[float]]) -> SampledAccuracy:
    metric = SampledAccuracy(2, ["sum"])
    count = 2 * len(prompts)
    shape = (count, 1)
    rollouts = Rollouts(
        tokens=torch.zeros(shape, dtype=torch.long),
        mask=torch.ones(shape, dtype=torch.bool),
        logprobs=torch.zeros(shape),
        truncated=torch.zeros(count, dtype=torch.bool),
        texts=["1"] * count,
        group_size=2,
        weight_version=torch.zeros(count, dtype=torch.long),
    )
    metric.update(prompts, rollouts, torch.tensor(scores))
    return metric


def test_each_question_has_a_row_of_its_accuracy(tmp_path):
    nan = float("nan")
    metric = accuracy([prompt("a", "sum", level=3.0), prompt("b")], [[1.0, 0.0], [nan, nan]])
    rows = question_rows({"dev": metric, "empty": SampledAccuracy(2)}, 23)
    assert repr(rows) == repr([("dev", 23, "a", "sum", 3.0, 0.5), ("dev", 23, "b", "", nan, nan)])
    metric.reset()
    assert not question_rows({"dev": metric}, 23)  # no names without their scores


def test_a_resumed_run_replaces_its_rows_of_the_same_step(tmp_path):
    path = tmp_path / "run" / "questions.parquet"
    add_rows(path, [("dev", 0, "a", "sum", 3.0, 0.25), ("dev", 0, "b", "", 1.0, 0.5)])
    add_rows(path, [("dev", 2, "a", "sum", 3.0, 0.75), ("test/dev", 2, "a", "", 3.0, 0.0)])
    add_rows(path, [("dev", 2, "a", "sum", 3.0, 1.0), ("dev", 4, "a", "sum", 3.0, 1.0)])  # gone on from step 1
    table = pandas.read_parquet(path)
    assert list(table.columns) == ["set", "step", "uid", "topic", "level", "accuracy"]
    assert list(zip(table["set"], table["step"], table["uid"], table["accuracy"], strict=True)) == [
        ("dev", 0, "a", 0.25), ("dev", 0, "b", 0.5), ("dev", 2, "a", 1.0), ("test/dev", 2, "a", 0.0), ("dev", 4, "a", 1.0),
    ]  # fmt: skip


def test_a_full_disk_leaves_the_older_table(tmp_path, monkeypatch):
    path = tmp_path / "questions.parquet"
    add_rows(path, [("dev", 0, "a", "", 1.0, 0.5)])
    before = path.read_bytes()

    def full(table, where):
        where.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        add_rows(path, [("dev", 2, "a", "", 1.0, 0.5)])
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
