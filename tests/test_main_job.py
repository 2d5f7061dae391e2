"""The main job, with real parts: SmolLM2-135M-Instruct, sampled by vLLM, trained on word problems from a file."""

import csv
import json
from pathlib import Path

import pytest

from saerl_lightning import cli

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"

PROBLEMS = {
    "Tom has 3 apples and buys 4 more. How many apples does he have?": "7",
    "A box holds 6 eggs. How many eggs are in 5 boxes?": "30",
    "Ann reads 12 pages a day. How many pages does she read in a week?": "84",
    "A rope of 20 meters is cut into 4 equal parts. How long is each?": "5",
}


@pytest.mark.vllm
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn
@pytest.mark.skipif(not MODEL.is_dir(), reason="needs models/smollm2-135m: `make smollm2`")
def test_smollm2_learns_from_vllm_samples_under_the_guard(tmp_path, monkeypatch):
    """Three steps large enough that a stale sampler would be tenths of a nat off; the guard sees a right one."""
    monkeypatch.chdir(ROOT)
    rows = [{"id": f"p{i}", "prompt": p, "answer": a} for i, (p, a) in enumerate(PROBLEMS.items())]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chance = [{"class_path": "FormatReward", "init_args": {"pattern": "[a-m]$"}}]  # decided by the last letter
    flags = {
        "data.train": train,
        "data.batch_size": 2,
        "model.rewards": json.dumps(chance),
        "model.sampling.group_size": 4,
        "model.sampling.max_tokens": 12,
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 1e-4,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 3,
        "trainer.max_epochs": 2,
        "trainer.enable_checkpointing": "true",
        "run_dir": tmp_path / "run",
        "checkpoint.save_weights_only": "true",
    }
    configs = ["grpo.yaml", "model/smollm2_135m.yaml", "engine/vllm.yaml"]
    given = [part for name in configs for part in ("-c", f"configs/{name}")]
    cli.run(["fit", *given, *(f"--{name}={value}" for name, value in flags.items())])
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 3
    assert all(float(step["sampler/mismatch_mean"]) < 1e-4 for step in steps)
    assert any(float(step["optim/grad_norm"]) > 0 for step in steps[:2]), "no weight moved, so the sync was not tested"
    assert all(float(step["rollouts/staleness"]) == 0 for step in steps)
