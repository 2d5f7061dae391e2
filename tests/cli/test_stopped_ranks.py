"""A signal to a run of two processes: one checkpoint, the exit code of the signal, how to go on, and nobody left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.errors import RunStopped
from saerl_lightning.run_folder import TRAINING, RunFolder

ROOT = Path(__file__).parents[2]


def start(workplace, *command: str, program: Path = ROOT / "main.py") -> subprocess.Popen[str]:
    """A launcher that leads a process group, as a shell's job does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-W", "ignore", str(program), *command]
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(what, launcher: subprocess.Popen[str]):
    """The first true answer of `what`, while the launcher runs."""
    until = time.monotonic() + 200
    while not (found := what()):
        assert time.monotonic() < until and launcher.poll() is None, launcher.communicate()
        time.sleep(0.1)
    return found


def group_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The other processes of the run."""
    ps = ["ps", "-ww", "-o", "pid=,args=", "-g", str(launcher.pid)]
    found = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.splitlines()
    pids = [int(line.split()[0]) for line in found if "main.py" in line]
    return [pid for pid in pids if pid != launcher.pid]


def ended(launcher: subprocess.Popen[str]) -> str:
    """What it said, once it and its children have ended by themselves."""
    try:
        _, said = launcher.communicate(timeout=200)
        until = time.monotonic() + 5
        while group_of(launcher) and time.monotonic() < until:
            time.sleep(0.1)
        assert group_of(launcher) == []
    finally:
        if group_of(launcher) or launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    return said


def on_two(workplace, *flags: str) -> list[str]:
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=100000", "--trainer.max_epochs=-1"]
    return workplace.command("fit", *ranks, "--checkpoint.every_n_train_steps=100000", *flags)


def to_the_other(launcher: subprocess.Popen[str]) -> None:
    (child,) = group_of(launcher)
    os.kill(child, signal.SIGTERM)


def to_all(launcher: subprocess.Popen[str]) -> None:
    """As Ctrl-C does."""
    os.killpg(launcher.pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "name", "code"),
    [(to_the_other, "SIGTERM", 143), (to_all, "SIGINT", 130)],
    ids=["the other", "all"],
)
def test_a_signal_in_training_saves_once_and_ends_all(workplace, send, name, code):
    launcher = start(workplace, *on_two(workplace, workplace.with_dev(), "--trainer.val_check_interval=1"))
    wait_for(lambda: RunFolder(workplace.run_dir)._state() == TRAINING, launcher)
    time.sleep(1)  # some steps and validations
    send(launcher)
    said = ended(launcher)
    assert launcher.returncode == code and "Traceback" not in said, said[-3000:]
    steps = torch.load(workplace.last, weights_only=True)["global_step"]
    how = f"fit -c {workplace.run_dir}/config.yaml --ckpt_path last"
    line = rf"{name}: stopped at step {steps}; go on with: \S*python\S* -m saerl_lightning {re.escape(how)}\n"
    assert len(re.findall(line, said)) == 1, said[-3000:]
    assert steps > 0 and [each.name for each in workplace.last.parent.glob("*.ckpt")] == ["last.ckpt"]
    if send is to_the_other:
        again = start(workplace, *how.split(), f"--trainer.max_steps={steps + 1}")
        said = ended(again)
        assert again.returncode == 0, said[-3000:]
        assert torch.load(workplace.last, weights_only=True)["global_step"] == steps + 1


@pytest.mark.slow
def test_a_signal_while_the_other_process_starts_ends_both(workplace):
    launcher = start(workplace, *on_two(workplace))
    wait_for(lambda: group_of(launcher), launcher)
    launcher.terminate()
    said = ended(launcher)
    assert launcher.returncode == 143 and "Traceback" not in said, said[-3000:]
    assert "SIGTERM: stopped at step 0; nothing was saved yet: give the same command again" in said
    assert not workplace.run_dir.exists()


# Sends a signal to the first process when the second exists and its launcher has not noted it yet; a window of microseconds.
CAUGHT_STARTING = """
import os, signal, subprocess, sys

class Caught(subprocess.Popen):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        if (more.get("env") or {}).get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGNAL)

subprocess.Popen = Caught
from saerl_lightning.__main__ import main

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)])
def test_a_process_whose_launcher_is_gone_does_not_wait_for_it(workplace, tmp_path, name, code):
    """It would wait in the rendezvous for half an hour."""
    program = tmp_path / "main.py"
    program.write_text(CAUGHT_STARTING.replace("SIGNAL", name))
    launcher = start(workplace, *on_two(workplace), program=program)
    said = ended(launcher)
    assert launcher.returncode == code and "Traceback" not in said, said[-3000:]
    assert said.count("SIGTERM: stopped at step 0") == (name == "SIGTERM")


@pytest.mark.parametrize(("rank", "everywhere", "lines"), [(0, True, 1), (1, True, 0), (0, False, 1), (1, False, 1)])
def test_what_stops_all_processes_is_said_by_the_first_one(monkeypatch, door, rank, everywhere, lines):
    def stopped() -> None:
        raise RunStopped("the sampler is not the policy", everywhere=everywhere)

    monkeypatch.setattr(cli, "run", stopped)
    monkeypatch.setattr(cli.rank_zero_only, "rank", rank)
    ended = door(["fit"])
    assert ended.code == 2 and ended.stderr.count("error: the sampler is not the policy") == lines
