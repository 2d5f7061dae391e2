"""The tables of docs/results.md are what `study tables` makes of the numbers beside it: neither was changed alone."""

import re
from pathlib import Path

import pandas
import pytest
import yaml

from saerl_lightning.study.report.publication import write_section

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PUBLISHED = sorted(path for path in (PAGE.parent / "results").iterdir() if path.is_dir())


def test_a_study_is_published():
    assert PUBLISHED


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_tables_are_made_from_the_numbers(folder, tmp_path):
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text())
    (tmp_path / "results").symlink_to(folder.parent)
    write_section(tmp_path / "results" / folder.name, copy)
    assert copy.read_text() == PAGE.read_text(), "run `make results`"


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_ends_in_the_tables_are_the_means_of_the_questions(folder):
    """By another way than the tables are made: pandas' means over questions and seeds, then over the sets."""
    text = (
        PAGE.read_text().partition(f"<!-- tables {folder.name} -->")[2].partition(f"<!-- /tables {folder.name} -->")[0]
    )
    baseline = yaml.safe_load((folder / "study.yaml").read_text())["baseline"]
    asked = pandas.read_csv(folder / "questions.csv")
    runs = asked.columns[4:]  # the four before them are set, uid, topic, level
    asked = asked.dropna(subset=runs)  # as intervals are over the questions that all runs have answered
    ends = asked.groupby("set")[runs].mean().mean()
    table = re.split(rf"\*\*Against (?:each other and )?{baseline}: end, at the budget\*\*", text)[1].partition("**")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    assert {row[0] for row in rows if " − " not in row[0]} == {run.partition("/")[0] for run in runs} - {baseline}
    for pair, count, own, other, difference, *_ in rows:
        arm, _, second = pair.partition(" − ")
        second = second or baseline
        seeds = [run.partition("/")[2] for run in runs if run.startswith(f"{arm}/")]
        pairs = [(ends[f"{arm}/{seed}"], ends[f"{second}/{seed}"]) for seed in seeds if f"{second}/{seed}" in runs]
        assert len(pairs) == int(count)
        means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        assert [float(own), float(other), float(difference)] == pytest.approx([*means, means[0] - means[1]], abs=6e-4)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_numbers_are_below_a_megabyte(folder):
    assert sum(each.stat().st_size for each in folder.iterdir()) < 1_000_000
