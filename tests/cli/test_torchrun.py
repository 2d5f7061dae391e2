"""Two processes started by torchrun: one run folder, one line when they are refused, and nobody left when one is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.run_folder import named_by_time, require_place
from tests.cli.test_stopped_ranks import ended, on_two, start, wait_for

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]


def torchrun(folder: Path, command: list[str], shell: str = "") -> subprocess.CompletedProcess[str]:
    """Runs two processes of a command line; `shell` is added to it, where $RANK differs between them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {
        "COMMAND": " ".join(f"'{word}'" for word in [sys.executable, "-W", "ignore", str(ROOT / "main.py"), *command])
    }
    line = [sys.executable, *TORCHRUN, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--no_python"]
    return subprocess.run(
        [*line, "sh", "-c", f'eval "exec $COMMAND {shell}"'], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_processes_of_torchrun_share_one_run_folder_and_end_together(workplace, tmp_path):
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=1"]
    command = [word for word in workplace.command("fit", *ranks) if not word.startswith("--run_dir")]
    done = torchrun(tmp_path, command)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.stdout.count(f"run folder: runs/{folder.name}") == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_dir"] == f"runs/{folder.name}"

    done = torchrun(tmp_path, [*command, f"--run_dir=runs/{folder.name}"])
    assert done.returncode != 0
    assert errors(done) == [
        f"error: run folder 'runs/{folder.name}' exists; write --ckpt_path last to go on with that run, --overwrite true to "
        "delete it, or another --run_dir"
    ]

    done = torchrun(tmp_path, [*command, "--run_dir=runs/other"], "--model.micro_tokens=51$RANK")
    assert done.returncode != 0
    assert errors(done) == [
        "error: process 1 has other settings than process 0: model.micro_tokens is 511 there and 510 here; start all alike"
    ]
    assert not (tmp_path / "runs/other/config.yaml").exists()


def test_the_folder_of_a_job_of_slurm_and_of_processes_that_know_no_other(monkeypatch):
    monkeypatch.delenv("SAERL_RUN_DIR", raising=False)
    for name, value in (("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3"), ("SLURM_JOB_ID", "77")):
        monkeypatch.setenv(name, value)
    assert named_by_time() == "runs/job-77"
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert named_by_time() == ""
    with pytest.raises(
        InputError, match=r"4 processes were started one by one, .*write --run_dir with one folder for all"
    ):
        require_place("")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert named_by_time().startswith("runs/2")


def children_of(pid: int) -> list[int]:
    ps = ["ps", "-o", "pid=", "--ppid", str(pid)]
    return [int(each) for each in subprocess.run(ps, capture_output=True, text=True, check=False).stdout.split()]


def training(workplace) -> bool:
    return (workplace.run_dir / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["the first of two", "one of torchrun's"])
def test_a_killed_process_takes_the_others_along(workplace, tmp_path, launcher):
    """By SIGKILL, in training; under Lightning's own launcher, whose process is the first, and under torchrun."""
    command = [*on_two(workplace), "--checkpoint.every_n_train_steps=1"]
    if "torchrun" in launcher:
        program = tmp_path / "main.py"
        program.write_text(
            "import sys, runpy\n"
            f"sys.argv = [sys.argv[0], *{[*TORCHRUN[2:]]!r}, '--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', "
            f"{str(ROOT / 'main.py')!r}, *sys.argv[1:]]\n"
            "runpy.run_module('torch.distributed.run', run_name='__main__')\n"
        )
        job = start(workplace, *command, program=program)
    else:
        job = start(workplace, *command)
    wait_for(lambda: training(workplace), job)
    others = children_of(job.pid)
    os.kill(others.pop() if "torchrun" in launcher else job.pid, signal.SIGKILL)
    began = time.monotonic()
    ended(job)
    assert job.returncode != 0 and len(others) == 1
    while Path(f"/proc/{others[0]}").exists() and time.monotonic() - began < 60:
        time.sleep(0.1)
    assert time.monotonic() - began < 60
    assert torch.load(workplace.last, weights_only=True)["global_step"] > 0
