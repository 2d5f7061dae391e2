"""Running a study: what is refused before the first run, what a kill, a failure and a full disk leave behind."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.study import run_record
from saerl_lightning.study.execution import StudyExecution
from saerl_lightning.study.folder import check_runs, resolve
from saerl_lightning.study.plan import duration, estimate, plan_text, planned_runs
from saerl_lightning.study.processes import RayExecutor, SubprocessExecutor, tail
from saerl_lightning.study.results import RunResult, StudyResults, read_run
from saerl_lightning.study.run_record import RunRecord, read_record
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import make_shared
from saerl_lightning.tools.study import failure, print_run_commands, progress
from tests.study.small_study import CONFIGS, ROOT, FakeExecutor, log_steps, run, spec_file, study

GOLDEN = Path(__file__).parent / "golden"


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_printed_run_commands_hold_the_whole_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saerl_lightning.study.plan.PROGRAM", ["python", "-m", "saerl_lightning"])
    monkeypatch.chdir(tmp_path)
    arms = {"grpo": {}, "warm": {"configs": ["a b.yaml"], "flags": ["--data.labels={shared}/labels.jsonl"]}}
    Path("a b.yaml").write_text("model: {init_args: {sampling: {temperature: 1.2}}}\n")
    path = spec_file(tmp_path, arms=arms)
    print_run_commands(StudySpec.read(path), path, Path("out"))
    printed = capsys.readouterr().out.replace(str(CONFIGS), "CONFIGS")
    assert printed == (GOLDEN / "commands.txt").read_text()
    assert StudyResults.read("out").spec == StudySpec.read(path)  # a report finds what the scheduler runs


def finished(arm: str, seed: int, seconds: float, state: str = "finished") -> RunResult:
    return RunResult(arm, seed, state, Path(), seconds)


def test_the_estimate_takes_each_arms_own_mean():
    runs = [finished("a", 0, 10), finished("b", 0, 40), finished("c", 0, 0, "failed"), finished("a", 1, 0, "waiting")]
    assert estimate(runs, jobs=1) == 10 + 25  # a's mean; c has none, so the mean of all
    assert estimate(runs, jobs=8) == 35 / 2  # no more jobs than runs
    assert estimate(runs[2:], jobs=1) is None
    assert [duration(seconds) for seconds in (50, 600, 7200)] == ["50 s", "10 min", "2.0 h"]


def test_the_plan_and_the_progress_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [
        {"name": "labels", "makes": "labels.jsonl", "run": ["main.py label"]},
        {"name": "SAE", "makes": "sae", "run": ["main.py fit --data.seed={seed}"]},
    ]
    spec = study(tmp_path, shared=stages, share=["labels", "order"])
    Path("out/shared/seed-1/sae").mkdir(parents=True)
    Path("out/shared/labels.jsonl").touch()
    runs = [finished("grpo", 0, 60), finished("warm", 0, 3, "failed"), finished("grpo", 1, 0, "waiting")]
    runs.append(finished("warm", 1, 20, "stopped"))
    text = plan_text(StudyResults(spec, runs, Path("out")), jobs=2)
    failed = RunRecord("warm", 0, "failed", exit=1, error="one\ntwo")
    text += f"\n{progress(runs, 1)}\n{failure(failed)}\n"
    assert text == (GOLDEN / "plan.txt").read_text()


def test_arms_take_turns_and_finished_runs_are_not_repeated(tmp_path, capsys):
    first = FakeExecutor()
    assert run(tmp_path, first) == 0
    assert first.ran == ["grpo/seed-0", "warm/seed-0", "grpo/seed-1", "warm/seed-1"]
    results = StudyResults.read(tmp_path / "out")
    assert results.complete and [each.seed for each in results.finished("warm")] == [0, 1]
    record = json.loads((tmp_path / "out/warm/seed-1/run.json").read_text())
    assert record["state"] == "finished" and record["exit"] == 0 and "--seed_everything=1" in record["command"]
    again = FakeExecutor()
    assert run(tmp_path, again, seeds=[0, 1, 2]) == 0  # a study may grow
    assert again.ran == ["grpo/seed-2", "warm/seed-2"]
    assert "to run: 2; about" in capsys.readouterr().out


def test_a_failed_run_does_not_stop_the_others_and_says_why(tmp_path, capsys):
    assert run(tmp_path, FakeExecutor(fails=("warm/seed-0",)), jobs=2) == 1
    states = {(each.arm, each.seed): each for each in StudyResults.read(tmp_path / "out").runs}
    assert [each.state for each in states.values()] == ["finished", "failed", "finished", "finished"]
    assert states["warm", 0].error == "step 2\nOutOfMemory: 3 GB"
    assert "failed: warm, seed 0, with exit code 1:\n    step 2\n    OutOfMemory: 3 GB" in capsys.readouterr().out
    again = FakeExecutor()
    assert run(tmp_path, again) == 0 and again.ran == ["warm/seed-0"]


def test_a_run_whose_plan_ran_out_is_not_finished(tmp_path):
    assert run(tmp_path, FakeExecutor(steps=40)) == 1
    assert "ended by itself after 40 steps" in StudyResults.read(tmp_path / "out").runs[0].error


def test_an_unfinished_run_goes_on_if_it_can_and_begins_anew_if_not(tmp_path):
    out = tmp_path / "out"
    spec = study(tmp_path)
    planned = planned_runs(spec, out, resolve(spec, out))
    folders = [each.folder for each in planned]
    for folder in folders:
        folder.mkdir(parents=True)
        RunRecord("x", 0, "running", started="before", seconds=5.0).write(folder)
        (folder / "half").touch()
    log_steps(folders[0], 23)  # a checkpoint in the middle
    log_steps(folders[2], 46, validated=False)  # killed in its last validation
    log_steps(folders[3], 46, validated=False)  # the same, and its checkpoint says that the validation was made
    there: list[bool] = []

    def goes_on(folder: Path) -> None:
        there.append((folder / "half").exists())
        if folder == folders[0]:
            log_steps(folder, 46, version=1, start=23)
        if folder == folders[2]:
            log_steps(folder, 46, version=1, start=46)

    records = StudyExecution(spec, FakeExecutor(during=goes_on), 1).run(planned, lambda record: None)
    assert there == [True, False, True, True, False] and {each.state for each in records} == {"finished"}
    assert records[0].started == "before" and records[0].seconds >= 5.0
    assert records[1].started != "before" and records[1].seconds < 5.0
    assert records[2].started == "before" and records[3].started != "before"
    assert read_run(out, spec, "grpo", 1).curve("val/macro/avg@k") == [(0, 0.25), (46, 0.5)]
    assert records[0].costs == {
        "steps": 46.0, "generate_s": 23.0, "train_s": 11.5, "other_s": 0.0, "sampled_tokens": 4600.0, "trained_tokens": 0.0,
    }  # fmt: skip
    assert read_run(out, spec, "grpo", 0).curve("val/macro/avg@k") == [(0, 0.25), (23, 0.5), (46, 0.5)]


def test_a_schedulers_runs_are_picked_up_without_a_record(tmp_path):
    spec = study(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    assert read_record(folder, "grpo", 0, spec).state == "waiting"
    log_steps(folder, 45)
    (folder / "config.yaml").touch()
    assert read_record(folder, "grpo", 0, spec).state == "running"
    log_steps(folder, 46, version=1, start=45)
    assert read_record(folder, "grpo", 0, spec).state == "finished"
    (folder / "checkpoints/last.ckpt").unlink()
    assert read_record(folder, "grpo", 0, spec).state == "running"
    tokens = replace(spec, budget=replace(spec.budget, steps=None, generated_tokens=4600))
    (folder / "checkpoints/last.ckpt").touch()
    assert read_record(folder, "grpo", 0, tokens).state == "finished"  # 46 steps of 100 tokens
    (folder / "run.json").write_text('{"state": "fin')
    assert read_record(folder, "grpo", 0, spec).state == "finished"  # half a record is none


def test_a_full_disk_costs_one_run_and_no_finished_one(tmp_path, monkeypatch):
    whole = run_record.write_whole

    def full(path: Path, text: str) -> None:
        if "warm/seed-0" in str(path):
            raise OSError(28, "No space left on device")
        whole(path, text)

    monkeypatch.setattr(run_record, "write_whole", full)
    assert run(tmp_path, FakeExecutor()) == 1
    monkeypatch.undo()
    results = StudyResults.read(tmp_path / "out")
    assert [each.state for each in results.runs] == ["finished", "waiting", "finished", "finished"]


def test_a_record_is_old_or_new_and_never_half(tmp_path, monkeypatch):
    RunRecord("grpo", 0, "finished").write(tmp_path)
    before = (tmp_path / "run.json").read_text()

    def half(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        RunRecord("grpo", 0, "failed").write(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"] and (tmp_path / "run.json").read_text() == before


# -- what is shared ----------------------------------------------------------------------------------------------------


def stage(*lines: str, makes: str = "thing") -> dict:
    return {"shared": [{"name": "the thing", "makes": makes, "run": list(lines)}], "share": ["the thing"]}


def test_a_shared_stage_is_made_once_and_whole(tmp_path):
    write = "python -c \"import sys; open(sys.argv[1], 'a').write('x')\""
    lines = [f"{write} {{scratch}}/part", "cp {scratch}/part {made}"]
    spec, said = study(tmp_path, **stage(*lines, makes="below/thing")), []
    for _ in range(2):
        make_shared(spec, tmp_path / "out", SubprocessExecutor(), said.append)
    assert (tmp_path / "out/shared/below/thing").read_text() == "x"
    assert len(said) == 2 and said[0].startswith("making the thing: ") and said[1].startswith("  made in ")
    assert not list((tmp_path / "out/shared").glob(".making*"))
    assert (
        StudyResults.read.__func__
        and 0 <= json.loads((tmp_path / "out/shared/stages.json").read_text())["the thing"] < 30
    )
    broken = study(tmp_path, **stage("python -c \"open('{made}', 'w'); raise SystemExit('no luck')\"", makes="half"))
    with pytest.raises(RunStopped, match=r"(?s)'the thing' ended with 1 .*no luck"):
        make_shared(broken, tmp_path / "out", SubprocessExecutor(), said.append)
    assert not (tmp_path / "out/shared/half").exists()
    idle = study(tmp_path, **stage("python -c pass", makes="nothing"))
    with pytest.raises(RunStopped, match="made nothing"):
        make_shared(idle, tmp_path / "out", SubprocessExecutor(), said.append)


# -- processes ---------------------------------------------------------------------------------------------------------

FORKS = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie: no one may be left to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stop_ends_the_whole_process_group(tmp_path):
    executor, log, codes = SubprocessExecutor(), tmp_path / "log.txt", []
    thread = threading.Thread(target=lambda: codes.append(executor.run([sys.executable, "-c", FORKS], {}, log)))
    thread.start()
    while not tail(log):
        time.sleep(0.02)
    assert runs(grandchild := int(tail(log)))
    executor.stop()
    thread.join(timeout=10)
    time.sleep(0.1)
    assert codes == [-signal.SIGTERM] and not runs(grandchild)
    assert executor.run([sys.executable, "-c", "pass"], {}, log) != 0  # nothing starts any more


KILLED = """
import signal, sys, time
from pathlib import Path
sys.argv = ["main.py", "study", "run", sys.argv[1], "--out", sys.argv[2], "--jobs", "2"]
from saerl_lightning.study import plan
plan.PROGRAM = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
from saerl_lightning.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_leaves_no_process_and_true_records(tmp_path, number):
    path, out = spec_file(tmp_path), tmp_path / "out"
    script = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), str(out)]
    study_run = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    logs = [out / arm / "seed-0/log.txt" for arm in ("grpo", "warm")]
    until = time.monotonic() + 120
    while not all("up" in tail(log) for log in logs):
        assert time.monotonic() < until and study_run.poll() is None, study_run.communicate()
        time.sleep(0.05)
    study_run.send_signal(number)
    _, said = study_run.communicate(timeout=60)
    time.sleep(0.2)
    alive = subprocess.run(["pgrep", "-f", f"run_dir={out}"], capture_output=True, text=True, check=False)
    assert alive.stdout == ""
    states = [each.state for each in StudyResults.read(out).runs]
    if number == signal.SIGKILL:
        assert states == ["running", "running", "waiting", "waiting"]  # no one was there to write more
    else:
        assert study_run.returncode == 130 and "the same command goes on from here" in said
        assert states == ["stopped", "stopped", "waiting", "waiting"]


@pytest.mark.slow
def test_a_study_of_a_tiny_policy_runs_and_takes_a_seed_more(tmp_path, monkeypatch, capsys):
    """Two arms, two seeds, two steps; the second seed is added later."""
    monkeypatch.chdir(ROOT)
    flags = [
        "--model.policy.path={shared}/policy",
        "--data.train.size=64",
        "--data.batch_size=2",
        "--data.val.demo.size=6",
        "--model.sampling.max_tokens=3",
        "--trainer.val_check_interval=1",
    ]
    shared = [{"name": "policy", "makes": "policy", "run": ["python -m saerl_lightning.tools.demo {made}"]}]
    settings = {"flags": flags, "shared": shared, "share": ["policy"], "budget": {"steps": 2}}
    assert run(tmp_path, SubprocessExecutor(), jobs=2, seeds=[0], **settings) == 0, capsys.readouterr().out
    assert run(tmp_path, SubprocessExecutor(), jobs=2, seeds=[0, 1], **settings) == 0
    results = StudyResults.read(tmp_path / "out")
    assert results.complete and set(results.stages) == {"policy"}
    for each in results.runs:
        assert [step for step, _ in each.curve("val/macro/avg@k")] == [0, 1, 2]
        questions = each.questions()
        assert questions.groupby("step")["accuracy"].mean().to_list() == pytest.approx(
            [value for _, value in each.curve("val/macro/avg@k")], abs=1e-6
        )
        assert len(questions) == 18 and not questions.duplicated(["set", "step", "uid"]).any()
        assert each.costs["steps"] == 2 and 2 * 2 * 8 <= each.costs["sampled_tokens"] <= 2 * 2 * 8 * 3
        assert 0 < each.costs["generate_s"] < each.seconds
    (tmp_path / "out").rename(tmp_path / "moved")  # a study may move; a run may not change places
    settings["seeds"] = [0, 1]
    check_runs(spec := study(tmp_path, **settings), tmp_path / "moved", resolve(spec, tmp_path / "out"))
    config = tmp_path / "moved/warm/seed-1/config.yaml"
    config.write_text((tmp_path / "moved/grpo/seed-1/config.yaml").read_text())
    with pytest.raises(
        InputError, match=r"warm/seed-1' holds a run of another study: .* is .* there, and .* in the arm 'warm'"
    ):
        check_runs(spec, tmp_path / "moved", resolve(spec, tmp_path / "out"))


def test_without_ray_the_executor_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="needs Ray, which is not installed; pip install"):
        RayExecutor().check(1)
