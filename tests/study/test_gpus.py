"""GPUs of a study's runs on one machine: each has its own, and no more runs start than there are GPUs for."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.study.processes import SubprocessExecutor, visible_gpus
from saerl_lightning.tools import study
from tests.study.small_study import spec_file

# Says which GPUs it sees once as many others are there as run at a time.
SAYS = """
import os, sys, time
from pathlib import Path
here, number, others = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(here / f"up-{number}").touch()
while len(list(here.glob("up-*"))) < others:
    time.sleep(0.01)
print(os.environ.get("CUDA_VISIBLE_DEVICES", "none"), flush=True)
"""


def seen(executor: SubprocessExecutor, folder, runs: int) -> list[str]:
    """What each of several command lines that run side by side sees."""
    folder.mkdir()
    logs = [folder / f"{number}.txt" for number in range(runs)]
    commands = [[sys.executable, "-c", SAYS, str(folder), str(number), str(runs)] for number in range(runs)]
    with ThreadPoolExecutor(runs) as pool:
        assert set(pool.map(lambda pair: executor.run(pair[0], {}, pair[1]), zip(commands, logs, strict=True))) == {0}
    return [log.read_text().strip() for log in logs]


def test_runs_side_by_side_share_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,GPU-7a")
    executor = SubprocessExecutor(1)
    executor.check(3)
    for again in ("first", "second"):  # they are given back
        assert sorted(seen(executor, tmp_path / again, 3)) == ["3", "5", "GPU-7a"]
    assert seen(SubprocessExecutor(2), tmp_path / "two", 1) == ["3,5"]
    assert seen(SubprocessExecutor(0), tmp_path / "all", 2) == ["3, 5,GPU-7a"] * 2


def test_a_run_that_can_not_start_gives_its_gpu_back(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    executor = SubprocessExecutor(1)
    with pytest.raises(FileNotFoundError):
        executor.run(["/no/such/program"], {}, tmp_path / "log.txt")
    assert seen(executor, tmp_path / "next", 1) == ["0"]


@pytest.mark.parametrize(
    ("gpus", "jobs", "said"),
    [
        (1, 4, "--jobs 4 with --gpus 1 for each need 4 GPUs, and 3 are here; write --jobs 3, or --gpus 0"),
        (2, 2, "--jobs 2 with --gpus 2 for each need 4 GPUs, and 3 are here; write --jobs 1, or --gpus 0"),
        (8, None, "--jobs 2 with --gpus 8 for each need 16 GPUs, and 3 are here; write --gpus 3 --jobs 1, or --gpus 0"),
        (0.5, None, "--gpus is 0.5; write a whole number, or --executor ray, which shares GPUs"),
    ],
)
def test_more_runs_than_gpus_are_refused_before_anything_is_written(gpus, jobs, said, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(InputError, match=said):
        study.run(str(spec_file(tmp_path)), str(tmp_path / "out"), jobs, gpus=gpus)
    assert not (tmp_path / "out").exists()


def test_as_many_runs_as_gpus_unless_told_otherwise(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        study, "run_study", lambda spec, source, root, jobs, place, shared_only, records: given.append(jobs)
    )
    for shown, gpus in (("0,1,2,3", 1), ("0,1,2,3", 2), ("0,1,2,3", 0), ("", 1), ("-1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        study.run(str(spec_file(tmp_path)), gpus=gpus)
    assert given == [4, 2, 2, 2, 2]


def test_gpus_are_counted_by_torch_where_the_environment_names_none(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == [] and SubprocessExecutor(1).room() is None
    SubprocessExecutor(1).check(64)
