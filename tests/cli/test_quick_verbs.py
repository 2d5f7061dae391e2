"""What needs no Lightning: the list of verbs, `--version`, `configs`, `import`, `init`, and that they answer without it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from saerl_lightning import __version__, cli
from saerl_lightning.verbs.names import EVERY
from saerl_lightning.verbs.quick import answered
from tests.cli.test_door import the_line

ROOT = Path(__file__).parents[2]


def test_the_verbs_that_are_known_beforehand_are_those_that_there_are():
    assert set(EVERY) == {*cli.RunCLI.subcommands(), *cli.TOOLS, "configs", "import", "init"}


QUICK = {
    "version": (["--version"], 0, rf"^saerl_lightning {re.escape(__version__)}$"),
    "configs": (["configs"], 0, r"^grpo\.yaml +The baseline: GRPO on random order"),
    "one config": (["configs", "configs/saerl.yaml"], 0, "^# SAERL: features of a sparse autoencoder"),
    "init": (["init", "try"], 0, r"^wrote try: .*\n  \S*saerl fit -c try/run\.yaml$"),
    "import": (["import", "trl", "no.yaml"], 2, "^error: the arguments 'no.yaml' can't be read"),
    "help of import": (["import", "--help"], 0, r"^usage: \S*saerl import trl\|verl FILE"),
    "help of init": (["init", "--help"], 0, r"^usage: \S*saerl init DIR"),
    "help of configs": (["configs", "-h"], 0, r"^usage: \S*saerl configs"),
    "a mistyped verb": (["inti", "try"], 2, "^error: 'inti' is none of fit, .*; did you mean 'init'"),
    "no verb": ([], 2, "^error: no verb is given; write one of fit, validate"),
}


@pytest.mark.parametrize(("args", "code", "says"), QUICK.values(), ids=QUICK)
def test_an_answer_that_needs_no_lightning_imports_none(tmp_path, args, code, says):
    watch = (
        "import sys; from saerl_lightning.__main__ import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=open('imported', 'w'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", watch, *args], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert re.search(says, done.stdout + done.stderr)
    imported = set((tmp_path / "imported").read_text().split())
    assert "saerl_lightning.__main__" in imported
    assert not imported & {"lightning", "torch", "transformers", "jsonargparse"}


# -- init --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def starter(tmp_path, monkeypatch, capsys) -> Path:
    folder = tmp_path / "a b, {c} 'd' #"  # what YAML would read otherwise
    assert answered(["init", str(folder)])
    assert "-m saerl_lightning fit -c " in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_the_starter_is_what_it_says(starter):
    assert {each.name for each in starter.iterdir()} == {
        "run.yaml",
        "reward.py",
        "prompts.jsonl",
        "README.md",
        "policy",
    }
    rows = [json.loads(line) for line in (starter / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and all({"prompt", "answer"} <= set(row) for row in rows)
    for row in rows:
        left, sign, right = re.match(r"What is (\d+) (.) (\d+)\?", row["prompt"]).groups()
        assert eval(f"{left} {sign.replace('x', '*')} {right}") == int(row["answer"])
    assert len((starter / "README.md").read_text().splitlines()) == 6
    config = yaml.safe_load((starter / "run.yaml").read_text())
    assert config["data"]["init_args"]["train"] == str(starter / "prompts.jsonl")
    assert "$FOLDER" not in "".join(each.read_text() for each in starter.iterdir() if each.is_file())


def test_the_starter_trains_from_any_folder_and_learns(starter, door):
    import csv

    assert door(["fit", "-c", str(starter / "run.yaml"), "--trainer.max_steps=25"]).code == 0
    with next(Path("runs").glob("*/csv/version_0/metrics.csv")).open() as file:
        rewards = [float(row["reward/mean"]) for row in csv.DictReader(file)]
    assert len(rewards) == 25
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_init_never_overwrites(starter, door, monkeypatch):
    before = {each: each.read_bytes() for each in starter.rglob("*") if each.is_file()}
    assert "exists and is not empty" in the_line(door(["init", str(starter)]))
    assert "exists and is not empty" in the_line(door(["init", str(starter / "run.yaml")]))
    monkeypatch.chdir(starter)
    assert "is the folder you are in" in the_line(door(["init", "."]))
    assert "or above it" in the_line(door(["init", ".."]))
    assert {each: each.read_bytes() for each in starter.rglob("*") if each.is_file()} == before


BAD = {
    "nothing": (["init"], "'init' has 0 arguments; usage: "),
    "two": (["init", "a", "b"], "'init' has 2 arguments"),
    "a flag": (["init", "--force", "a"], "'--force' is not accepted; usage: "),
    "no letters": (["init", " "], "the folder is ' '"),
    "what data.train would read as a mixture": (["init", "a: b"], "holds ': '"),
    "two lines": (["init", "a\nb"], r"the folder is 'a\nb'"),
    "a home that no shell wrote": (["init", "~/a"], "the folder is '~/a'"),
    "below a file": (["init", "file/a"], "can't be used"),
    "a long name": (["init", "x" * 300], "File name too long"),
    "a config that is none": (["configs", "grop.yaml"], "did you mean 'grpo.yaml'"),
    "a config far from any": (
        ["configs", "../../etc/passwd"],
        "no config '../../etc/passwd' is shipped; ",
    ),
    "two configs": (["configs", "a", "b"], "'configs' has 2 arguments"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, door, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert says in the_line(door(args))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_others_before_torch_is_imported(given, kept):
    script = (
        "import os, sys; sys.argv = ['saerl', '--version']; from saerl_lightning.__main__ import main; main(); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env = own if given is None else {**own, "OMP_WAIT_POLICY": given}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == f"{kept} False"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m saerl_lightning configs | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("grpo.yaml") and not done.stderr


# -- -c by name --------------------------------------------------------------------------------------------------------


def test_a_run_takes_shipped_configs_by_name(tmp_path, monkeypatch, parsed, door):
    monkeypatch.chdir(tmp_path)
    parsed_config = parsed(["fit", "-c", "grpo.yaml", "-c", "configs/saerl.yaml", "-c", "engine/hf.yaml"])
    assert parsed_config["model"].class_path.endswith("GRPOModule")
    assert parsed_config["data"].init_args.curriculum.class_path.endswith("EasyToHard")
    assert parsed_config["model"].init_args.engine.class_path.endswith("HFEngine")
    assert "there is no config 'grop.yaml' here" in the_line(door(["fit", "-c", "grop.yaml"]))


def test_a_study_is_found_by_name(tmp_path, monkeypatch, door, capsys):
    monkeypatch.chdir(tmp_path)
    assert door(["study", "run", "study/demo.yaml", "--print_commands", "true"]).code == 0
