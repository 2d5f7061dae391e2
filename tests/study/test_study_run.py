"""Running a study: what is refused before the first run, what a kill, a failure and a full disk leave behind."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from saerl_lightning import cli
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.study import run_record
from saerl_lightning.study.execution import StudyExecution
from saerl_lightning.study.folder import check_runs, resolve
from saerl_lightning.study.plan import duration, estimate, plan_text, planned_runs
from saerl_lightning.study.processes import Executor, RayExecutor, SubprocessExecutor, tail
from saerl_lightning.study.results import RunResult, StudyResults, read_run
from saerl_lightning.study.run_record import RunRecord, read_record
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import make_shared
from saerl_lightning.tools.study import failure, print_run_commands, progress, run_study

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
GOLDEN = Path(__file__).parent / "golden"
DEMO = [str(CONFIGS / "demo/tasks.yaml"), str(CONFIGS / "demo/grpo.yaml")]
STUDY = {
    "name": "small",
    "base": DEMO,
    "arms": {
        "grpo": {"description": "vanilla"},
        "warm": {"flags": ["--model.sampling.temperature=1.2"], "description": "warmer"},
    },
    "seeds": [0, 1],
    "budget": {"steps": 46},
    "baseline": "grpo",
    "primary": ["warm"],
}


def spec_file(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**STUDY, **changes}.items() if value is not None}))
    return path


def study(folder: Path, **changes: object) -> StudySpec:
    return StudySpec.read(spec_file(folder, **changes))


def log_steps(folder: Path, steps: int, version: int = 0, start: int = 0, validated: bool = True) -> None:
    """What a run leaves behind: a row a step, the checkpoint, and a last validation."""
    log = folder / "csv" / f"version_{version}"
    log.mkdir(parents=True)
    rows = ["step,loss,time/generate,time/forward,throughput/sampled_tokens_per_s,val/macro/avg@k"]
    rows += ["0,,,,,0.25"] if start == 0 else []
    rows += [f"{step},1.0,0.5,0.25,200,," for step in range(start, steps)]
    rows += [f"{steps - 1},,,,,0.5"] if validated else []
    (log / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/last.ckpt").touch()


@dataclass
class FakeExecutor(Executor):
    """Trains in no time; `fails` says which runs do not, `during` is called in each."""

    fails: tuple[str, ...] = ()
    steps: int = 46
    ran: list[str] = field(default_factory=list)
    during: object = None

    def check(self) -> None: ...

    def run(self, command, environment, log) -> int:
        folder = log.parent
        self.ran.append(environment["WANDB_NAME"])
        if self.during is not None:
            self.during(folder)
        with log.open("a") as file:
            file.write("step 1\rstep 2\nOutOfMemory: 3 GB\n")
        if environment["WANDB_NAME"] in self.fails:
            return 1
        if not (folder / "checkpoints/last.ckpt").exists():
            log_steps(folder, self.steps)
        return 0

    def stop(self) -> None: ...


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "no seeds": ({"seeds": []}, r"no seeds; write a list, such as seeds: \[0, 1"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds repeat 1"),
    "no arms": ({"arms": {}}, "no arms"),
    "unknown baseline": (
        {"baseline": "gpro"},
        "baseline names the arm 'gpro', which is not there; the arms are grpo, warm",
    ),
    "unknown primary": ({"primary": ["hot"]}, "primary names the arm 'hot'"),
    "the baseline as primary": ({"primary": ["grpo"]}, "primary names the baseline"),
    "no budget": ({"budget": {}}, "the budget says nothing; write one of steps: N and generated_tokens: N"),
    "an empty budget": ({"budget": {"steps": 0}}, "Budget.steps is 0; write a whole number from 1"),
    "two budgets": ({"budget": {"steps": 1, "generated_tokens": 1}}, "the budget says steps: 1, generated_tokens: 1"),
    "a missing key": ({"name": None}, "a mistake at name: is missing"),
    "a mistyped key": ({"seed": [1]}, "a mistake at seed: is no setting here"),
    "a text for a list": (
        {"arms": {"grpo": {"flags": "-x"}}},
        "arms.grpo.flags: input should be a valid list, seen '-x'",
    ),
    "a path for an arm": ({"arms": {"../x": {}}, "baseline": "../x"}, "arm '../x'"),
    "a stage outside": ({"shared": [{"name": "a", "makes": "../b", "run": []}]}, "write a path below"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_study_that_cannot_be_run_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **changes)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        StudySpec.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is no YAML"):
        StudySpec.read(tmp_path / "bad.yaml")


def with_flags(*flags: str, **changes: object) -> dict:
    return {"arms": {"grpo": {}, "other": {"flags": list(flags)}}, "primary": ["other"], **changes}


UNRESOLVED = {
    "the same": (with_flags(), "the arms 'grpo' and 'other' resolve to the same configuration"),
    "the same in other words": (with_flags("--model.sampling.temperature=1"), "resolve to the same"),
    "no curve": (
        with_flags("--trainer.logger=WandbLogger"),
        "the arm 'other' logs to WandbLogger, and a study reads csv.*add others behind it",
    ),
    "other questions": (with_flags("--data.val=null"), "'other' changes the evaluation: data.init_args.val is None"),
    "other tests": (with_flags("--data.test=null"), "changes the evaluation: data.init_args.test is None"),
    "other samples": (
        with_flags("--data.val_sampling.group_size=4"),
        "changes the evaluation: data.init_args.val_sampling",
    ),
    "other times": (
        with_flags("--trainer.val_check_interval=46"),
        "trainer.val_check_interval is 46, and 23 in 'grpo'",
    ),
    "another grader": (
        with_flags("--model.rewards=[{class_path: MathReward}]"),
        r"model.init_args.rewards.0 grades it, and is .*MathReward.*a weight of 0",
    ),
    "a mistyped flag": (
        with_flags("--data.curiculum=null"),
        r"(?s)'other' does not parse: .*'curiculum' is not accepted; did you mean 'curriculum'\?$",
    ),
    "a flag of the study": (
        with_flags("--trainer.max_steps=3"),
        "'other' gives --trainer.max_steps, which the study sets",
    ),
    "many updates": (with_flags("--model.updates_per_batch=2"), "'other' takes 2 optimiser steps a batch"),
    "uneven": ({"budget": {"steps": 50}}, "50 is no multiple of trainer.val_check_interval 23: .*; write 46 or 69"),
    "shares of epochs": (
        {"flags": ["--trainer.val_check_interval=0.5"]},
        "val_check_interval is 0.5 .*a number of steps",
    ),
}


@pytest.mark.parametrize(("changes", "message"), UNRESOLVED.values(), ids=UNRESOLVED)
def test_arms_that_cannot_be_compared_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        resolve(study(tmp_path, **changes), tmp_path / "out")


def test_a_study_that_asks_what_it_trains_on_is_refused_before_anything_is_made(tmp_path):
    """The demo's tasks are small: without parts of their own, its sets repeat the training questions."""
    flags = ["--data.val.demo.part=null", "--data.train.part=null", "--data.train.size=400"]
    with pytest.raises(InputError, match=r"data.val.demo asks \d+ of its 280 questions that the arm 'grpo' trains on"):
        run(tmp_path, FakeExecutor(), flags=flags)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, FakeExecutor(), flags=["--data.train.size=400"], arms={"grpo": {}}, primary=[]) == 0


SHIPPED = sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))


@pytest.mark.parametrize(
    "name", [name if name == "demo" else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
def test_every_shipped_study_resolves(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = StudySpec.read(CONFIGS / f"study/{name}.yaml")
    resolved = resolve(spec, Path("runs/x"))
    assert spec.name == name and set(resolved) == set(spec.arms)
    assert all(arm.description for arm in spec.arms.values())
    assert "runs/demo" not in str(resolved)  # what `make demo` leaves may be there, and is not the study's


COMMANDS = sorted(
    {
        line
        for name in SHIPPED
        for stage in StudySpec.read(CONFIGS / f"study/{name}.yaml").shared
        for line in stage.run
        if line.startswith("main.py") and not line.startswith("main.py export")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_shipped_stage_reads_nothing_that_the_study_has_not_made(line, monkeypatch, capsys):
    """`plan` and `label` take the settings of `fit`, and two or three of their own."""
    monkeypatch.chdir(ROOT)
    verb, *words = line.replace("{seed}", "3").split()[1:]
    own = ("--out=",) if verb == "plan" else ("--out=", "--prompts=", "--seed=") if verb == "label" else ()
    with pytest.raises(SystemExit) as ended:
        cli.run(["fit", *(word for word in words if not word.startswith(own)), "--print_config"])
    assert ended.value.code in (0, None)
    read = capsys.readouterr().out
    for place in ("run_dir", "save_to"):
        read = re.sub(rf"^ *{place}: .*$", "", read, flags=re.M)
    assert "runs/demo" not in read


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_printed_commands(tmp_path, capsys, monkeypatch):
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


# -- running -----------------------------------------------------------------------------------------------------------


def run(tmp_path: Path, executor: Executor, jobs: int = 1, **changes: object) -> int:
    path = spec_file(tmp_path, **changes)
    return run_study(StudySpec.read(path), path, tmp_path / "out", jobs, executor)


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


def test_half_a_run_goes_on_if_it_can_and_begins_anew_if_not(tmp_path):
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


# -- folders -----------------------------------------------------------------------------------------------------------


def test_the_folder_of_another_study_is_refused(tmp_path):
    run(tmp_path, FakeExecutor())
    with pytest.raises(
        InputError, match="is the folder of the study 'small', and this is 'other'; name another by --out"
    ):
        run(tmp_path, FakeExecutor(), name="other")
    changed = {**STUDY["arms"], "warm": {"flags": ["--model.sampling.temperature=1.3"]}}
    with pytest.raises(InputError, match=r"other settings of 'warm' .*delete .* or give the changed arm a new name"):
        run(tmp_path, FakeExecutor(), arms=changed)
    with pytest.raises(InputError, match="other settings of 'grpo', 'warm'"):
        run(tmp_path, FakeExecutor(), budget={"steps": 69})
    (tmp_path / "out/study.json").unlink()
    with pytest.raises(InputError, match="so it is no study's folder"):
        run(tmp_path, FakeExecutor())
    with pytest.raises(InputError, match=r"holds no study.yaml"):
        StudyResults.read(tmp_path)


def test_two_at_once_are_refused(tmp_path):
    path = spec_file(tmp_path)
    refused: list[str] = []

    def second(folder: Path) -> None:
        with pytest.raises(InputError, match=r"the study's folder .* is in use by process") as caught:
            run_study(StudySpec.read(path), path, tmp_path / "out", 1, FakeExecutor(steps=46))
        refused.append(str(caught.value))

    assert run(tmp_path, FakeExecutor(during=second), seeds=[0], arms={"grpo": {}}, primary=[]) == 0
    assert len(refused) == 1


# -- what is shared ----------------------------------------------------------------------------------------------------


def stage(*lines: str, makes: str = "thing") -> dict:
    return {"shared": [{"name": "the thing", "makes": makes, "run": list(lines)}], "share": ["the thing"]}


def test_a_shared_stage_is_made_once_and_whole(tmp_path):
    write = "python -c \"import sys; open(sys.argv[1], 'a').write('x')\""
    lines = [f"{write} {{scratch}}/part", "cp {scratch}/part {made}"]
    spec, said = study(tmp_path, **stage(*lines, makes="below/thing")), []
    for _ in range(2):
        make_shared(spec, tmp_path / "out", SubprocessExecutor(), said.append)
    assert (tmp_path / "out/shared/below/thing").read_text() == "x" and len(said) == 1
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
def test_a_real_study_of_a_tiny_policy(tmp_path, monkeypatch, capsys):
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
    with pytest.raises(InputError, match="needs Ray, which is not installed"):
        RayExecutor().check()
