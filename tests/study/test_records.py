"""Records of finished runs: what they hold, who takes them, what is refused, and what a kill leaves behind."""

import csv
import getpass
import json
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.study.results import COLUMNS, QUESTIONS, StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools import study as tool
from tests.study.small_study import FakeExecutor, spec_file
from tests.study.synthetic_study import _questions

RUNS = ["grpo/seed-0", "warm/seed-0", "grpo/seed-1", "warm/seed-1"]
STAGE = {"name": "labels", "makes": "labels.jsonl", "run": ["python make.py {seed} {made}"]}


def answered(folder: Path) -> None:
    """The questions, and a warning with a path, of a run."""
    seed = int(folder.name.removeprefix("seed-"))
    shift = 0.011 * seed + (0.1 / 3 if folder.parent.name == "warm" else 0.0)
    _questions([0.2, 0.3 + shift], 6)[COLUMNS].to_parquet(folder / QUESTIONS)
    (folder / "log.txt").write_text(f"warning: data.filtering: did nothing, see {folder}/config.yaml\n")


def made(out: Path, records: Path | None, executor: FakeExecutor | None = None, **changes: object) -> list[str]:
    """Runs the study; returns the runs that were made."""
    executor = executor or FakeExecutor(during=answered)
    out.parent.mkdir(exist_ok=True)
    path = spec_file(out.parent, **changes)
    tool.run_study(StudySpec.read(path), path, out, 1, executor, records=None if records is None else str(records))
    return executor.ran


def tables(out: Path) -> dict[str, str]:
    tool.report(str(out))
    return {path.name: path.read_text() for path in sorted((out / "report").glob("*.csv"))}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_study_goes_on_elsewhere_from_its_records_and_its_report_is_the_same(tmp_path, capsys):
    records = tmp_path / "records"
    assert made(tmp_path / "here/out", records) == RUNS
    assert files(records) == sorted(f"small/{run}.json" for run in RUNS)
    assert made(tmp_path / "there/elsewhere", records) == []
    assert "2/2 finished (seeds 0, 1 from records)" in capsys.readouterr().out
    here, there = tables(tmp_path / "here/out"), tables(tmp_path / "there/elsewhere")
    runs = list(csv.DictReader(here["runs.csv"].splitlines()))
    # By hand: warm, seed 1, ends at .3 + .011 + .1/3 by its questions, and at .5 by its log, with 46 steps of 100 tokens.
    assert float(runs[3]["end/demo"]) == pytest.approx(0.311 + 0.1 / 3) and float(runs[3]["sampled_tokens"]) == 4600
    without_links = [
        {name: [{**row, "config": ""} for row in csv.DictReader(text.splitlines())] for name, text in each.items()}
        for each in (here, there)
    ]
    assert without_links[0] == without_links[1] and {"questions.csv", "curves.csv", "effects.csv"} <= {*here}
    page = (tmp_path / "there/elsewhere/report/report.md").read_text()
    assert "Runs from records" in page and "did nothing" in page
    assert "Runs from records" not in (tmp_path / "here/out/report/report.md").read_text()
    assert made(tmp_path / "there/elsewhere", None) == []  # and later without the records


def test_records_hold_no_path_and_no_name_of_a_machine_or_user(tmp_path):
    made(tmp_path / "out", tmp_path / "records")
    for path in (tmp_path / "records").rglob("*.json"):
        text = path.read_text()
        words = {word for line in text.splitlines() for word in line.replace('"', " ").split()}
        assert str(tmp_path) not in text and str(Path.home()) + "/" not in text and str(Path.cwd()) not in text
        assert not {socket.gethostname(), getpass.getuser()} & words
        assert '"/' not in text and len(text) < 3000
        assert json.loads(text)["warnings"] == ["data.filtering: did nothing, see …"]


def test_a_second_run_over_the_first_writes_nothing_again_and_records_what_was_made_before(tmp_path):
    records, out = tmp_path / "records", tmp_path / "out"
    assert made(out, None) == RUNS and not records.exists()
    assert made(out, records) == []
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    assert len(before) == 4 and made(out, records) == []
    assert {path: path.stat().st_mtime_ns for path in records.rglob("*.json")} == before
    (records / "small/warm/seed-0.json").unlink()
    shutil.rmtree(out)
    assert made(out, records) == ["warm/seed-0"]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"seeds": [0, 1, 2]}, False),
        (
            {"arms": {"grpo": {}, "warm": {"flags": ["--model.sampling.temperature=1.2"], "description": "other"}}},
            False,
        ),
        ({"arms": {"grpo": {}, "warm": {"flags": ["--model.sampling.temperature=1.3"]}}}, True),
        ({"budget": {"steps": 92}}, True),
    ],
)
def test_a_record_of_other_settings_is_refused_and_nothing_is_written(tmp_path, changes, refused):
    records = tmp_path / "records"
    made(tmp_path / "out", records)
    before, other = files(tmp_path), FakeExecutor(during=answered, steps=92)
    if not refused:
        assert set(made(tmp_path / "new", records, other, **changes)) <= {"grpo/seed-2", "warm/seed-2"}
        return
    with pytest.raises(InputError, match=r"the record '.*/small/\w+/seed-0.json' is of a run with other settings"):
        made(tmp_path / "new", records, other, **changes)
    assert files(tmp_path) == before and other.ran == []


@pytest.mark.parametrize("damage", ["torn", "conflict", "of another run", "text for a number", "no list"])
def test_a_broken_record_is_refused_and_nothing_is_written(tmp_path, damage):
    records = tmp_path / "records"
    made(tmp_path / "out", records)
    place = records / "small/warm/seed-1.json"
    text = place.read_text()
    place.write_text(
        {
            "torn": text[: len(text) // 2],
            "conflict": text.replace(' "seconds"', '<<<<<<< HEAD\n "seconds"', 1),
            "of another run": (records / "small/warm/seed-0.json").read_text(),
            "text for a number": text.replace('"sampled_tokens": 4600.0', '"sampled_tokens": "many"', 1),
            "no list": "[]",
        }[damage]
    )
    before = files(tmp_path)
    with pytest.raises(
        InputError, match=r"the record '.*warm/seed-1.json' is broken \(.*; restore it, or delete it"
    ) as said:
        made(tmp_path / "new", records)
    assert "\n" not in str(said.value) and files(tmp_path) == before


def test_products_of_a_seed_whose_runs_are_recorded_are_not_made_again(tmp_path, capsys):
    make = tmp_path / "make.py"
    make.write_text("import sys; open(sys.argv[2], 'w').write(sys.argv[1])\n")

    class Making(FakeExecutor):
        """Makes the products too."""

        def run(self, command, environment, log):
            if "WANDB_NAME" in environment:
                return super().run(command, environment, log)
            return subprocess.run(command, check=False).returncode

    stages = [{**STAGE, "run": [f"python {make} {{seed}} {{made}}"]}]
    arms = {"grpo": {}, "warm": {"flags": ["--data.labels={shared}/labels.jsonl"]}}
    records, new = tmp_path / "records", tmp_path / "new"
    made(tmp_path / "out", records, Making(during=answered), shared=stages, arms=arms)
    (records / "small/warm/seed-1.json").unlink()
    assert made(new, records, Making(during=answered), shared=stages, arms=arms) == ["warm/seed-1"]
    assert not (new / "shared/seed-0/labels.jsonl").exists() and (new / "shared/seed-1/labels.jsonl").exists()
    assert "labels, seed 0: " in (said := capsys.readouterr().out) and "(not needed: its runs are recorded)" in said
    seconds = json.loads((records / "small/warm/seed-0.json").read_text())["shared"]
    assert seconds.keys() == {"labels"} and (records / "small/warm/seed-1.json").is_file()


def test_a_kill_while_a_record_is_written_leaves_none_and_the_next_call_writes_it(tmp_path):
    records, out = tmp_path / "records", tmp_path / "out"
    made(out, None)
    body = (
        "import sys, time, pathlib\nfrom saerl_lightning.study import records\n"
        "from saerl_lightning.files import whole_file\n"
        "def slow(target, text):\n"
        "    target.parent.mkdir(parents=True, exist_ok=True)\n"
        "    with whole_file(target) as staged:\n"
        "        staged.write_text(text[:len(text) // 2]); print('half', flush=True); time.sleep(60)\n"
        "records.write_whole = slow\n"
        "from saerl_lightning.tools.study import run\n"
        "run(sys.argv[1], out=sys.argv[2], records=sys.argv[3])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", body, str(tmp_path / "small.yaml"), str(out), str(records)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and next(line for line in child.stdout if line == "half\n")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not list(records.rglob("*.json")) and len(files(records)) == 1  # half of a file under another name
    assert made(out, records) == [] and len(list(records.rglob("*.json"))) == 4


def test_a_record_that_comes_while_others_run_is_taken(tmp_path):
    earlier, records = tmp_path / "earlier", tmp_path / "records"
    made(tmp_path / "a/out", earlier)

    def meanwhile(folder: Path) -> None:
        answered(folder)
        shutil.copytree(earlier, records, dirs_exist_ok=True)

    assert made(tmp_path / "b/out", records, FakeExecutor(during=meanwhile)) == RUNS[:1]
    assert StudyResults.read(tmp_path / "b/out").complete


def test_two_processes_at_once_share_a_folder_of_records(tmp_path):
    """Both make the runs that the other has not finished; every record is whole, and both studies are complete."""
    records, context = tmp_path / "records", multiprocessing.get_context("spawn")
    both = [context.Process(target=made, args=(tmp_path / name / "out", records)) for name in ("a", "b")]
    for each in both:
        each.start()
    for each in both:
        each.join()
        assert each.exitcode == 0
    assert all(StudyResults.read(tmp_path / name / "out").complete for name in ("a", "b"))
    assert files(records) == sorted(f"small/{run}.json" for run in RUNS)
    assert made(tmp_path / "c/out", records) == []


def test_a_gate_keeps_records_too(tmp_path, monkeypatch, capsys):
    class Here(FakeExecutor):
        def __init__(self, gpus: int) -> None:
            super().__init__(during=answered)

    monkeypatch.setattr(tool, "SubprocessExecutor", Here)
    monkeypatch.setattr(tool, "require_key", lambda *_: None)
    path = spec_file(tmp_path, gate={"oracle": "warm", "null": "grpo", "seeds": [100, 101]})
    for out in ("one", "two"):
        with pytest.raises(SystemExit):  # all runs end alike, so it does not hold
            tool.gate(str(path), str(tmp_path / out), records=str(tmp_path / "records"))
    assert files(tmp_path / "records") == sorted(
        f"small_gate/{arm}/seed-{seed}.json" for arm in ("grpo", "warm") for seed in (100, 101)
    )
    assert "2/2 finished (seeds 100, 101 from records)" in capsys.readouterr().out


def test_questions_of_a_record_are_those_of_the_last_evaluation(tmp_path):
    made(tmp_path / "out", tmp_path / "records")
    given = json.loads((tmp_path / "records/small/grpo/seed-1.json").read_text())
    frame = pandas.read_parquet(tmp_path / "out/grpo/seed-1" / QUESTIONS)
    last = frame[frame.step == 10].sort_values("uid")
    assert [row[4] for row in given["questions"]] == list(last.accuracy) and len(last) == 6
