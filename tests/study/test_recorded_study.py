"""A study that version 0.1 ran (tests/study/recorded/0.1, 2 arms x 2 seeds of 8 steps) is read as the version read it.

`study/` is its folder without weights; `report/` holds tables that `study report` of 0.1 made of it.
"""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.study import publish, report, tables

RECORDED = Path(__file__).parent / "recorded/0.1"
METRIC = "val/macro/avg@k"


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(RECORDED / "study", tmp_path / "study"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_report_of_an_old_study_has_the_numbers_that_the_old_version_gave(old):
    report(str(old))
    curves = [{**row, "value": row[METRIC]} for row in rows(old / "report/curves.csv")]
    expected = rows(RECORDED / "report/curves.csv")
    assert [{name: row[name] for name in expected[0]} for row in curves] == expected
    for name in ("runs", "costs"):
        found, before = rows(old / f"report/{name}.csv"), rows(RECORDED / f"report/{name}.csv")
        # The target changed since, and links to the runs' folders are the page's alone.
        for key in before[0].keys() - {"reached", "config"}:
            values, earlier = ([row[key] for row in table] for table in (found, before))
            try:
                assert [float(value) for value in values] == pytest.approx([float(value) for value in earlier])
            except ValueError:
                assert values == earlier
    page = (old / "report/report.html").read_text()
    assert "shortest prompts first" in page and len(page) > 100_000


def test_a_report_of_an_old_study_says_what_its_seeds_had_in_common(old):
    report(str(old))
    text = (old / "report/report.md").read_text()
    parts = "cold start, signals, reference, filtering, clustering, curriculum, mixing, online, extra, rewards"
    assert f"- common to all seeds: the pool and the questions, {parts}\n" in text


def test_an_old_study_is_published_and_its_tables_are_made_from_the_files_alone(old, tmp_path, capsys):
    publish(str(old), str(tmp_path / "published"))
    shutil.rmtree(old)
    capsys.readouterr()
    tables(str(tmp_path / "published"))
    said = capsys.readouterr().out
    assert (
        "| by_length | 2 | 0.750 | 0.938 | -0.188 |" in said
    )  # (1 + .875) / 2, and (.979 + .521) / 2, by 0.1's curves


def test_settings_that_an_old_study_could_have_and_nothing_reads_now_are_passed_over(old):
    given = yaml.safe_load((old / "study.yaml").read_text())
    (old / "study.yaml").write_text(yaml.safe_dump({**given, "report": {"entity": "somebody"}}))
    assert [run.state for run in StudyResults.read(old).runs] == ["finished"] * 4


def test_an_old_studys_file_is_not_run_anew_as_if_its_seeds_were_independent(old):
    with pytest.raises(InputError, match="'cold start' is made for each seed, but would be the same each time"):
        StudySpec.read(old / "study.yaml")
