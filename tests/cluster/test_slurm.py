"""A job near its end: the step is saved, the job asked for again, and the next one goes on. SLURM is faked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saerl_lightning.cluster.slurm import processes_here, requeue_after
from saerl_lightning.reward.workers import WorkerPool
from tests.cli.conftest import policy as policy
from tests.cli.conftest import workplace as workplace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scontrol(tmp_path, monkeypatch) -> Path:
    """A program of that name which writes down what it was asked, and the file that it writes to."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    return tmp_path / "asked"


def test_only_the_signal_before_the_end_asks_for_the_job_again(scontrol, monkeypatch, capsys):
    requeue_after("SIGTERM")
    assert not scontrol.exists()
    requeue_after("SIGUSR1")
    assert scontrol.read_text() == "requeue 71\n" and "SLURM starts job 71 again" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_after("SIGUSR1")
    assert scontrol.read_text() == "requeue 71\nrequeue 70_3\n"


def test_a_refusal_is_said_and_outside_of_a_job_nothing_is_asked(scontrol, monkeypatch, capsys):
    (scontrol.parent / "bin/scontrol").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 1\n")
    requeue_after("SIGUSR1")
    assert "SLURM did not requeue job 71: Access denied" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    requeue_after("SIGUSR1")
    assert "there is no scontrol here" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_JOB_ID")
    requeue_after("SIGUSR1")
    assert not capsys.readouterr().err


def test_processes_of_a_machine_share_its_graders(monkeypatch):
    assert processes_here({}) == 1 and processes_here({"LOCAL_WORLD_SIZE": "8"}) == 8
    assert processes_here({"SLURM_PROCID": "3", "SLURM_NTASKS_PER_NODE": "4(x2)"}) == 4
    assert processes_here({"SLURM_NTASKS_PER_NODE": "4"}) == 1  # in a job, but not started by srun
    for processes, count in (("1", 6), ("2", 3), ("4", 1), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        pool = WorkerPool(6, 30.0)
        try:
            pool.map(os.getpid, [()] * 12)
            assert len(pool._pool) == count
        finally:
            pool.close()


@pytest.mark.slow
def test_a_job_near_its_end_is_saved_and_goes_on_when_slurm_starts_it_again(scontrol, workplace):
    """The second job ends on the weights of one that was never stopped."""
    names = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")
    faked = dict.fromkeys(names, "1") | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    faked |= {"SLURM_JOB_NAME": "train", "SLURM_JOB_NODELIST": "localhost", "PYTHONPATH": str(ROOT)}
    place = {**os.environ, **faked, "OMP_NUM_THREADS": "1"}

    def job(folder: Path, *flags: str) -> subprocess.Popen:
        length = ["--trainer.max_steps=12", "--trainer.max_epochs=2"]
        more = [f"--run_dir={folder}", *length, "--ckpt_path=last", *flags]
        command = [sys.executable, str(ROOT / "main.py"), *workplace.command("fit", *more)]
        return subprocess.Popen(
            command, env=place, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    folder, whole = workplace.folder / "run", workplace.folder / "whole"
    first = job(folder, "--checkpoint.every_n_train_steps=1")
    until = time.monotonic() + 240
    while not (folder / "checkpoints/last.ckpt").exists() and time.monotonic() < until and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR1)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 128 + signal.SIGUSR1, said
    assert scontrol.read_text() == "requeue 71\n" and "SIGUSR1: stopped at step" in said
    stopped = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 1 <= stopped < 12
    for each in (folder, whole):
        ended = job(each)
        said = ended.communicate(timeout=240)[1]
        assert ended.returncode == 0, said
    one, two = (torch.load(each / "checkpoints/last.ckpt", weights_only=True) for each in (folder, whole))
    assert one["global_step"] == two["global_step"] == 12
    assert all(torch.equal(one["state_dict"][name], tensor) for name, tensor in two["state_dict"].items())
    assert scontrol.read_text() == "requeue 71\n"
