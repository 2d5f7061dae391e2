"""Runs whose samples depend on the weights, over N processes: `python equal_ranks.py POLICY FOLDER ENGINE STRATEGY N`.

Each saves the whole weights after three steps, and what was logged. Used by test_equal_ranks.py.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.terms import EntropyTerm
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.vllm import VLLMEngine
from saerl_lightning.training.callbacks import ValidateAtStart
from saerl_lightning.training.dynamic_sampling import DynamicSampling
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.test_grpo_module import Record


class Unseen(Sums):
    """Five sums that are not trained on."""

    def load(self):
        return Sums(65).load()[60:]


ENGINES = {"hf": HFEngine, "vllm": lambda: VLLMEngine(kv_cache_gb=0.125, max_num_seqs=16)}
OBJECTIVES = {"grpo": GRPO(), "dapo": DAPO(entropy=EntropyTerm(top_share=0.3))}


def run(policy: str, out: Path, engine: str, strategy: str, name: str) -> None:
    """One run: refills with DAPO, and a set of five questions, which two processes can't share evenly."""
    record = Record()
    grpo = module(
        policy,
        engine=ENGINES[engine](),
        objective=OBJECTIVES[name],
        micro_tokens=90,
        dynamic_sampling=DynamicSampling(max_rounds=2) if name == "dapo" else None,
    )
    val = {"val": {"five": Unseen()}, "val_batch_size": 1, "val_sampling": Sampling(group_size=3, max_tokens=4)}
    ranks = 1 if strategy == "one" else 2
    on = trainer(
        out, 3, (record, ValidateAtStart()), devices=ranks, strategy="ddp" if strategy == "ddp" else "auto",
        limit_val_batches=1.0,
    )  # fmt: skip
    fit(grpo, data(train=Sums(60), **val), on)
    if on.is_global_zero:
        logged = {key: float(value) for key, value in on.callback_metrics.items() if key.startswith("val/")}
        torch.save(grpo.model.state_dict(), out / f"{name}-{engine}-{strategy}.pt")
        Path(out, f"{name}-{engine}-{strategy}.json").write_text(json.dumps([*record.rows, logged]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in OBJECTIVES:
        run(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], each)
