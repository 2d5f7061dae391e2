"""Runs whose samples depend on the weights: `python equal_ranks.py POLICY FOLDER ENGINE STRATEGY [PRECISION]`.

Each saves the whole weights, adapters merged, after three steps, and what was logged. Used by test_equal_ranks.py.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.terms import EntropyTerm
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.weights import named_weights
from saerl_lightning.ranks.sharded import ShardedStrategy
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.scripted import ScriptedEngine
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.transfer.broadcast import GlooTransfer
from saerl_lightning.rollout.vllm import VLLMEngine
from saerl_lightning.training.callbacks import ValidateAtStart
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from saerl_lightning.training.rows import StepRows
from tests.training.conftest import Sums, data, fit, module, trainer
from tests.training.test_grpo_module import Record


class Unseen(Sums):
    """Five sums that are not trained on."""

    def load(self):
        return Sums(65).load()[60:]


class ByLength(ScriptedEngine):
    """Short completions to some prompts and long ones to others, so that processes have unequal numbers of micro-batches."""

    def __init__(self) -> None:
        super().__init__(["1"])

    def generate(self, prompt_ids, sampling):
        parts = []
        for ids in prompt_ids:
            self.completions = ["1", "22", "0"] if sum(ids) % 2 else ["3333", "4444 4", "9 9 9", "0", "12 34"]
            parts.append(super().generate([ids], sampling.placed([0], sampling.seed)))
        return Rollouts.join(parts)


PARTS = StepRows.parts


def counting(counts: list[tuple[int, int]]):
    """Keeps the number of micro-batches and of forward passes of every pass over a step's rows."""

    def counted(self, micro_batches, forwards):
        counts.append((len(micro_batches), forwards))
        return PARTS(self, micro_batches, forwards)

    return counted


STRATEGIES = {
    "one": "auto",
    "ddp": "ddp",
    "sharded": partial(ShardedStrategy, process_group_backend="gloo"),
    "last": partial(ShardedStrategy, gradients="last", process_group_backend="gloo"),
}
ENGINES = {
    "scripted": ByLength,
    "hf": HFEngine,
    "vllm": lambda: VLLMEngine(kv_cache_gb=0.125, max_num_seqs=16),
    "files": lambda: ServerEngine([os.environ["SERVER"]]),
    "gloo": lambda: ServerEngine([os.environ["SERVER"]], transfer=GlooTransfer(chunk_gb=1e-4)),
    "adapters": lambda: ServerEngine([os.environ["SERVER"]]),  # of a LoRA policy, alone
}
OBJECTIVES = {"grpo": GRPO(), "dapo": DAPO(entropy=EntropyTerm(top_share=0.3))}


def run(policy: str, out: Path, engine: str, strategy: str, name: str, precision: str) -> None:
    """One run: refills with DAPO, and a set of five questions, which two processes can't share evenly."""
    record, lora = Record(), LoRA(rank=4) if engine == "adapters" else None
    torch.manual_seed(0)  # for the adapters
    grpo = module(
        policy,
        policy=Policy(policy, lora=lora),
        engine=ENGINES[engine](),
        objective=OBJECTIVES[name],
        micro_tokens=90,
        dynamic_sampling=DynamicSampling(max_rounds=2) if name == "dapo" else None,
    )
    # A script's scoring is a forward pass, of which shards need equally many; these sets have not.
    sets = {"val": {"five": Unseen()}, "val_batch_size": 1, "val_sampling": Sampling(group_size=3, max_tokens=4)}
    val = {} if engine == "scripted" else sets
    ranks, chosen = 1 if strategy == "one" else 2, STRATEGIES[strategy]
    on = trainer(
        out, 3, (record, ValidateAtStart()), devices=ranks, strategy=chosen if isinstance(chosen, str) else chosen(),
        limit_val_batches=1.0, precision=precision,
    )  # fmt: skip
    counts = []
    StepRows.parts = counting(counts)
    fit(grpo, data(train=Sums(60), **val), on)
    Path(out, f"{name}-{engine}-{strategy}-{on.global_rank}.counts").write_text(json.dumps(counts))
    assert grpo.engine.takes_adapters == (lora is not None)
    weights = dict(named_weights(grpo.model))
    if on.is_global_zero:
        logged = {key: float(value) for key, value in on.callback_metrics.items() if key.startswith("val/")}
        torch.save(weights, out / f"{name}-{engine}-{strategy}.pt")
        Path(out, f"{name}-{engine}-{strategy}.json").write_text(json.dumps([*record.rows, logged]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    policy, folder, engine, strategy, *precision = sys.argv[1:]
    for each in OBJECTIVES:
        run(policy, Path(folder), engine, strategy, each, *precision or ["32-true"])
