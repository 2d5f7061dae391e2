"""A run whose policy is sharded over two processes: it goes on bit for bit, and one process reads its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.sharding import read_shards
from saerl_lightning.policy.weights import PolicyCheckpoint
from saerl_lightning.ranks.sharded import point

ROOT = Path(__file__).parents[2]
SCRIPT = "--model.engine.completions=" + json.dumps(["apple", "pear tree", "zoo", "xyz", "fig", "yy", "wz", "a b c d"])
SHARDED = ["--model.engine=ScriptedEngine", SCRIPT, "--trainer.devices=2", "--trainer.strategy=sharded"]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def called(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "ignore", str(ROOT / "main.py"), *words]
    return subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)


def run(workplace, verb: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return called(*workplace.command(verb, *flags))


def fitted(workplace, run_dir: Path, steps: int, *flags: str) -> None:
    done = run(workplace, "fit", *SHARDED, f"--run_dir={run_dir}", f"--trainer.max_steps={steps}", *flags)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_sharded_run_goes_on_bit_for_bit_and_is_read_by_one_process(workplace, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    fitted(workplace, whole, 4)
    fitted(workplace, parted, 2)
    last = parted / "checkpoints" / "last.ckpt"
    before = read_shards(last)["state_dict"]
    fitted(workplace, parted, 4, "--ckpt_path=last")
    one, two = (read_shards(folder / "checkpoints" / "last.ckpt") for folder in (whole, parted))
    assert one["global_step"] == two["global_step"] == 4 and one["processes"] == 2
    assert one["state_dict"].keys() == two["state_dict"].keys() == before.keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    assert any(not torch.equal(value, before[name]) for name, value in one["state_dict"].items())
    # One folder beside the pointer, and nothing half written.
    assert sorted(each.name for each in last.parent.iterdir()) == ["last-000004.shards", "last.ckpt"]

    done = run(workplace, "validate", workplace.with_dev(), f"--run_dir={parted}", "--ckpt_path=last")
    assert done.returncode == 0 and (parted / "accuracy-validate.json").is_file(), done.stderr[-3000:]
    assert PolicyCheckpoint.read(last).step == 4
    done = run(
        workplace, "predict", workplace.with_dev().replace("val", "test", 1), f"--run_dir={parted}", "--ckpt_path=last"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (parted / "predictions.jsonl").read_text().splitlines()]
    assert {row["uid"] for row in rows} == {f"dev-{i}" for i in range(4)}
    done = called("export", str(last), str(tmp_path / "hf"), f"--policy={workplace.policy}")
    assert done.returncode == 0, done.stderr[-3000:]
    exported = Policy(str(tmp_path / "hf")).load_model().state_dict()
    assert all(torch.equal(value, one["state_dict"][f"model.{name}"]) for name, value in exported.items())
    done = run(workplace, "fit", f"--run_dir={parted}", "--ckpt_path=last", "--trainer.max_steps=5")
    assert done.returncode == 2 and "was saved in shards" in done.stderr, done.stderr[-3000:]


@pytest.mark.slow
def test_the_engine_must_not_need_the_whole_policy(workplace, door, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    for flags, said in (
        (["--trainer.strategy=sharded"], "the engine samples by the policy's own modules"),
        (
            [*SHARDED, "--trainer.precision=64-true"],
            "trainer.precision is 64-true; under ShardedStrategy write bf16-mixed",
        ),
        (
            ["--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}"],
            "write --trainer.strategy sharded",
        ),
    ):
        ended = door(workplace.command("fit", "--trainer.devices=2", *flags))
        assert ended.code == 2 and said in ended.error, ended.error


def test_a_checkpoint_points_to_the_newest_folder_alone(tmp_path):
    path = tmp_path / "last.ckpt"
    for step, named in ((1, "last-000001.shards"), (2, "last-000002.shards"), (2, "last-000002b.shards")):
        staged = tmp_path / ".last.ckpt.writing"
        staged.mkdir()
        (staged / "meta.pt").write_text(str(step))
        point(path, staged, step)
        assert path.is_symlink() and (path / "meta.pt").read_text() == str(step)
        assert sorted(each.name for each in tmp_path.iterdir()) == [named, "last.ckpt"]
