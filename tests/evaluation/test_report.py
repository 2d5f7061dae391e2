"""The table and the JSON of an evaluation, on numbers worked by hand."""

import dataclasses
import json
import os
from datetime import datetime

import numpy as np
import pytest
from rich.console import Console

from saerl_lightning.evaluation.report import SetAccuracy, accuracy_table, write_accuracy


def half_right() -> SetAccuracy:
    """Four questions, two samples each: 1, 1, 0 and 0 of them right, and a fifth that was not graded."""
    estimates = {"avg@2": 0.5, "pass@1": 0.5, "pass@2": 0.5, "maj@2": 0.25, "truncated_frac": 0.125}
    return SetAccuracy("half", 2, estimates, np.array([1.0, 1.0, 0.0, 0.0, np.nan]))


def all_right() -> SetAccuracy:
    estimates = {"avg@1": 1.0, "pass@1": 1.0, "maj@1": 1.0, "truncated_frac": 0.0, "acc/topic/sums": float("nan")}
    return SetAccuracy("whole", 1, estimates, np.ones(1200))


def rows(*sets: SetAccuracy) -> list[str]:
    console = Console(width=100, record=True)
    console.print(accuracy_table(sets))
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip(" ─")]


def test_a_row_has_questions_accuracy_and_interval_and_the_last_row_is_the_mean():
    # Four questions, half of them right: means of 4 draws out of {0, 1} lie between 0 and 1, both ends in 1 of 16.
    assert rows(half_right(), all_right())[1:] == [
        "set questions avg@k pass@k maj@k truncated not graded",
        "half, k = 2 5 0.500 [0.000, 1.000] 0.500 0.250 0.125 1",
        "whole, k = 1 1,200 1.000 [1.000, 1.000] 1.000 1.000 0.000 0",
        "mean of the sets 0.750 0.750 0.625 0.062",
    ]


def test_one_set_has_no_mean_and_no_column_of_failures_without_one():
    assert rows(all_right())[1:] == [
        "set questions avg@k pass@k maj@k truncated",
        "whole, k = 1 1,200 1.000 [1.000, 1.000] 1.000 1.000 0.000",
    ]


def test_json_has_every_estimate_and_null_in_place_of_nan(tmp_path):
    write_accuracy([half_right(), all_right()], tmp_path / "accuracy-test.json")
    found = json.loads((tmp_path / "accuracy-test.json").read_text())
    assert found["half"] == {
        "questions": 5,
        "not_graded": 1,
        "k": 2,
        **half_right().estimates,
        "avg@2/interval": [0.0, 1.0],
    }
    assert found["whole"]["acc/topic/sums"] is None
    assert found["whole"]["avg@1/interval"] == [pytest.approx(1.0)] * 2


def test_earlier_estimates_are_kept_under_their_time(tmp_path):
    place = tmp_path / "accuracy-test.json"
    for name in ("first", "second", "third"):
        if place.exists():
            os.utime(place, (1_800_000_000, 1_800_000_000))  # both within one second
        write_accuracy([dataclasses.replace(all_right(), name=name)], place)
    when = datetime.fromtimestamp(1_800_000_000).strftime("%Y%m%d-%H%M%S")
    kept = [place, tmp_path / f"accuracy-test-{when}.json", tmp_path / f"accuracy-test-{when}-2.json"]
    assert [list(json.loads(each.read_text())) for each in kept] == [["third"], ["first"], ["second"]]
