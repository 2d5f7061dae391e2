"""A study's published numbers: the report's tables need nothing else, no byte is luck, and nothing else is overwritten."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats

from saerl_lightning.errors import InputError
from saerl_lightning.study.report.gather import gather, write_report
from saerl_lightning.study.report.numbers import read_numbers
from saerl_lightning.study.report.publication import FILES, read_publication, section, write_publication, write_section
from saerl_lightning.study.results import StudyResults
from tests.study.synthetic_study import METRIC, Arm, small_plan, write_study

SEEDS = 4


def uneven(rng: np.random.Generator, gain: float) -> list[list[float]]:
    """A curve a seed, with all the digits that a float has."""
    return [(0.1 + gain * np.arange(8) + 0.02 * rng.normal(size=8)).tolist() for _ in range(SEEDS)]


def messy_study(root: Path) -> Path:
    """Three arms of four seeds: uneven numbers, two sets, a question that one run did not grade, odd names, a stage."""
    rng = np.random.default_rng(0)
    scores = {"curriculum/probe/spearman": 0.1 + 0.2, "curriculum/probe/spearman_low": 0.2, "filtering/kept": 3.0}
    arms = {
        "grpo": Arm(uneven(rng, 0.02), "no, operation", varied=(1.5, 2.5, 3.0, 7.0)),
        "saerl": Arm(
            uneven(rng, 0.03),
            "all",
            ["--data.signals.sae", "{shared}/sae"],
            scores,
            small_plan(),
            tokens=90.1,
            varied=(3.0, 1.0, 0.7, 5.0),
        ),
        "random": Arm(uneven(rng, 0.02), failed={3: "out of memory, said\nthe card"}),
    }
    stage = {"name": "sae", "makes": "sae", "run": ["main.py fit"]}
    folder = write_study(root / "tiny", arms, ["saerl", "random"], 3, {"sae": 33.3}, [stage])
    for path in sorted(folder.glob("*/seed-*/questions.parquet")):
        table = pandas.read_parquet(path)
        other = table.assign(set="b, other", uid=[f'{uid} "é"' for uid in table["uid"]])
        table = pandas.concat([table, other], ignore_index=True)
        table["accuracy"] += rng.normal(scale=0.05, size=len(table))
        if path.parts[-3:-1] == ("saerl", "seed-1"):
            table.loc[(table["uid"] == "q1") & (table["step"] == 70), "accuracy"] = float("nan")
        table.to_parquet(path)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> tuple[Path, Path]:
    """The study's folder, and what was published of it."""
    root = tmp_path_factory.mktemp("messy")
    folder, to = messy_study(root), root / "published"
    write_publication(folder, to)
    return folder, to


def test_what_is_computed_from_the_files_is_what_is_computed_from_the_runs(messy, tmp_path):
    """To the last digit, and with the study's own folder gone."""
    folder, to = messy
    shutil.copytree(folder, tmp_path / "tiny")
    direct = gather(read_numbers(StudyResults.read(tmp_path / "tiny")))
    report = write_report(tmp_path / "tiny").with_suffix(".md").read_text()
    shutil.rmtree(tmp_path / "tiny")
    again = gather(read_publication(to))
    for name in ("target", "effects", "costs", "groups", "scores", "runs", "arms", "caveats", "primary", "common"):
        assert repr(getattr(again, name)) == repr(getattr(direct, name)), name
    assert len(again.effects) == 11 and len({each.measure for each in again.effects}) == 6
    printed = [line for line in section(to, tmp_path).splitlines() if line.startswith("|")]
    shown = [line for line in report.splitlines() if line.startswith("|")]
    assert printed == [line for line in shown if line in printed] and len(printed) > 40


def test_effects_are_scipys_and_a_slow_count_of_the_files_own_numbers(messy):
    """Area: Student's paired test. End: seeds and questions as two crossed ways, the difference question by question."""
    facts = gather(read_publication(messy[1]))
    runs = {(row["arm"], row["seed"]): row for row in rows(messy[1] / "runs.csv")}
    own, other = ([float(runs[arm, str(seed)]["area"]) for seed in range(SEEDS)] for arm in ("saerl", "grpo"))
    found = facts.effect("area", "saerl")
    test = stats.ttest_rel(own, other)
    ends = test.confidence_interval(0.95)
    assert (found.difference.value, found.p) == pytest.approx((np.mean(own) - np.mean(other), test.pvalue), rel=1e-6)
    assert (found.difference.low, found.difference.high) == pytest.approx((ends.low, ends.high), rel=1e-6)

    seed_means, question_variance, noise, freedom = [], [], [], []
    for name in ("demo", "b, other"):
        asked = [row for row in rows(messy[1] / "questions.csv") if row["set"] == name]
        cells = [[(row[f"saerl/seed-{s}"], row[f"grpo/seed-{s}"]) for s in range(SEEDS)] for row in asked]
        table = np.array(
            [[float(a) - float(b) for a, b in each] for each in cells if "" not in sum(each, ())]
        )  # (Q, S)
        count = len(table)
        assert count == (3 if name == "b, other" else 2)  # one was not graded
        seed_means.append(table.mean(0))
        question_variance.append(np.var([each.mean() for each in table], ddof=1) / count / 4)  # of a mean over two sets
        left = [
            (table[q, s] - table[q].mean() - table[:, s].mean() + table.mean()) ** 2
            for q in range(count)
            for s in range(SEEDS)
        ]
        noise.append(sum(left) / (SEEDS - 1) / (count - 1) / (SEEDS * count) / 4)
        freedom.append(count - 1)
    seed = np.var(np.mean(seed_means, axis=0), ddof=1) / SEEDS
    question = max(sum(question_variance) - sum(noise), 0)
    dof = sum(question_variance) ** 2 / sum(v**2 / d for v, d in zip(question_variance, freedom, strict=True))
    share = seed / (seed + question)
    quantile = share * stats.t.ppf(0.975, SEEDS - 1) + (1 - share) * stats.t.ppf(0.975, dof)
    found = facts.effect("end", "saerl").difference
    value = np.mean(seed_means)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.high - found.value == pytest.approx(quantile * (seed + question) ** 0.5, rel=1e-9)


def test_a_row_a_run_holds_what_was_worked_by_hand(tmp_path):
    """60 steps of 4 s and 200 tokens; the target of .2, half of .1 to .3, is where the mean of three is from step 20 on."""
    plain = [0.10, 0.20, 0.30, 0.30, 0.30, 0.30, 0.30]
    arms = {"grpo": Arm([plain] * 2), "saerl": Arm([plain, None])}
    write_publication(write_study(tmp_path / "tiny", arms, ["saerl"]), tmp_path / "to", unfinished=True)
    listed = rows(tmp_path / "to" / "runs.csv")
    assert list(listed[0].items())[:4] == [("arm", "grpo"), ("seed", "0"), ("state", "finished"), ("error", "")]
    numbers = {name: float(value) for name, value in list(listed[0].items())[4:]}
    assert numbers == pytest.approx(
        {
            "seconds": 240, "steps": 60, "start": 0.1, "end": 0.3, "area": (0.15 + 0.25 + 4 * 0.3) / 6, "reached": 20,
            "reached_tokens": 4000, "end/demo": 0.3, "generate_s": 120, "train_s": 75, "other_s": 15,
            "sampled_tokens": 12_000, "trained_tokens": 24_000,
        }
    )  # fmt: skip
    assert [(row["arm"], row["seed"], row["state"], row["end"]) for row in listed[2:]] == [
        ("saerl", "0", "finished", "0.3"),
        ("saerl", "1", "waiting", ""),
    ]
    curve = rows(tmp_path / "to" / "curves.csv")
    assert len(curve) == 3 * 7
    assert curve[1] == {
        "arm": "grpo", "seed": "0", "step": "10", "sampled_tokens": "2000.0", "seconds": "35.0", METRIC: "0.2",
    }  # fmt: skip
    about = json.loads((tmp_path / "to" / "study.json").read_text())
    assert (about["digest"], about["target"]) == ("feedbeef", pytest.approx(0.2))
    assert about["status"].startswith("UNFINISHED: 3 of 4 runs have finished (1 not started).")
    assert "\n**UNFINISHED: 3 of 4 runs have finished" in section(tmp_path / "to", tmp_path)


def test_the_same_runs_give_the_same_bytes_and_replace_them(messy, tmp_path):
    folder, to = messy
    write_publication(folder, tmp_path / "to")
    assert contents(tmp_path / "to") == contents(to) and set(contents(to)) == set(FILES)
    (tmp_path / "to" / "scores.csv").unlink()
    write_publication(folder, tmp_path / "to")
    assert contents(tmp_path / "to") == contents(to)
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_study_that_goes_on_is_published_only_by_its_name(tmp_path):
    folder = write_study(
        tmp_path / "tiny", {"grpo": Arm([[0.1, 0.2], None]), "saerl": Arm([[0.1, 0.2]] * 2)}, ["saerl"]
    )
    with pytest.raises(
        InputError, match=r"UNFINISHED: 3 of 4 runs have finished \(1 not started\)\. .*--unfinished true"
    ):
        write_publication(folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no study\.yaml, so it is no study's folder"):
        write_publication(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def write_other(to: Path, created: str) -> None:
    to.mkdir()
    (to / "study.json").write_text(json.dumps({"name": "tiny", "created": created}))


PLACES = {
    "a file": (lambda to: to.write_text("mine"), "is a file; name a folder"),
    "a folder of mine": (
        lambda to: (to.mkdir(), (to / "notes.md").write_text("mine")),
        "holds 'notes.md', which is nothing",
    ),
    "another run of it": (
        lambda to: write_other(to, "2025"),
        "what was published of 'tiny', begun 2025, and this is 'tiny'",
    ),
    "a torn one": (lambda to: (to.mkdir(), (to / "study.json").write_text("{")), "study.json' is torn or no study's"),
}


@pytest.mark.parametrize(("fill", "says"), PLACES.values(), ids=PLACES)
def test_a_place_that_holds_something_else_is_left_alone(messy, tmp_path, fill, says):
    to = tmp_path / "to"
    fill(to)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=says):
        write_publication(messy[0], to)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def swap(name: str, old: str, new: str):
    """What changes a published file by hand."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert re.search(old, text)
        (folder / name).write_text(re.sub(old, new, text, count=1))

    return change


ANSWER = r"(q0,algebra,0),[^,]+"  # of the first run
DAMAGES = {
    "a file less": (lambda folder: (folder / "curves.csv").unlink(), "holds no curves.csv; name a folder that"),
    "a start": (swap("runs.csv", r"(grpo,0,finished,,280\.0,70),0\.\d+", r"\1,0.9"), "says start is 0.9 in grpo/seed-0"),
    "a curve's value": (swap("curves.csv", r"(grpo,0,70,.*),0\.\d+\n", r"\1,0.9\n"), "one was changed by hand"),
    "a question's answer": (swap("questions.csv", ANSWER, r"\1,0.9"), "says end/.* in grpo/seed-0, and"),
    "a row cut short": (swap("curves.csv", r"grpo,1,10,\S+", "grpo,1,10"), "row 11 has another number of cells"),
    "no number": (swap("questions.csv", ANSWER, r"\1,good"), "questions.csv' is not as .*could not convert"),
    "a run twice": (swap("runs.csv", "grpo,1,finished", "grpo,0,finished"), "a run stands in two rows"),
    "a run that is not planned": (swap("runs.csv", "grpo,1,finished", "grpo,9,finished"), "run grpo/seed-1 stands in one of"),
    "an unknown state": (swap("runs.csv", "grpo,1,finished", "grpo,1,done"), "state 'done' is none of waiting, running"),
    "a column less": (swap("curves.csv", "arm,seed,step", "arm,seed,stop"), "do not begin with arm, seed, step"),
    "a metric less": (swap("curves.csv", METRIC, "val/other"), "says steps is 70 in grpo/seed-0"),
    "a torn record": (lambda folder: (folder / "study.json").write_text("{"), "study.json' is torn"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_files_that_were_changed_are_refused(messy, tmp_path, damage, says):
    shutil.copytree(messy[1], tmp_path / "to")
    damage(tmp_path / "to")
    with pytest.raises(InputError, match=says) as refused:
        section(tmp_path / "to", tmp_path)
    assert "\n" not in str(refused.value)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_tables_stand_between_their_marks_and_all_else_stays(messy, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("# Mine\n<!-- tables published -->\nthe older\n<!-- /tables published -->\n\nAfter é.\n")
    shutil.copytree(messy[1], tmp_path / "deep" / "published")
    write_section(tmp_path / "deep" / "published", page)
    once = page.read_text()
    begin, end = "# Mine\n<!-- tables published -->\n", "<!-- /tables published -->\n\nAfter é.\n"
    assert once.startswith(begin) and once.endswith(end) and "the older" not in once
    assert "[runs.csv](deep/published/runs.csv)" in once
    assert "\n| saerl | 4 | " in once and "WITH FAILED RUNS: 11 of 12" in once
    write_section(tmp_path / "deep" / "published", page)
    assert page.read_text() == once


@pytest.mark.parametrize(
    "text", ["", "<!-- tables published -->", "<!-- /tables published --><!-- tables published -->"]
)
def test_a_page_without_the_marks_is_left_alone(messy, tmp_path, text):
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(
        InputError, match="needs the lines <!-- tables published --> and <!-- /tables published --> once"
    ):
        write_section(messy[1], page)
    assert page.read_text() == text
