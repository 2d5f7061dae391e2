"""Runs of several objectives over N processes, as a script: `python ranks.py POLICY FOLDER N`. Used by test_ranks.py."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.reinforce_pp import ReinforcePP
from saerl_lightning.objective.terms import EntropyTerm
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.scripted import ScriptedEngine
from saerl_lightning.training.callbacks import TokenBudget
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from tests.training.conftest import ParityReward, Sums, data, fit, module, trainer
from tests.training.test_grpo_module import Record

TEXTS = ["1", "22", "333", "4444", "0", "12", "9 9 9", "7"]


class ByPrompt(ScriptedEngine):
    """Completions that depend on the prompt alone, so that they are the same on whichever rank it is served."""

    def generate(self, prompt_ids, sampling):
        parts, sampling = [], sampling.placed([0], sampling.seed)
        for ids in prompt_ids:
            start = sum(ids) % len(TEXTS)
            self.completions = TEXTS[start:] + TEXTS[:start]
            parts.append(super().generate([ids], sampling))
        return Rollouts.join(parts)


# What a step needs of all ranks: token and row counts, batch statistics, the quantile of entropies.
OBJECTIVES = {
    "grpo": GRPO(),
    "reinforce_pp": ReinforcePP(),
    "dapo": DAPO(entropy=EntropyTerm(top_share=0.3)),
}


class Lopsided(ParityReward):
    """Grades nothing of sums that 4 divides, and gives the same to all of those that 3 divides."""

    def __call__(self, prompts, rollouts):
        scores = super().__call__(prompts, rollouts)
        for row, prompt in enumerate(prompts):
            if int(prompt.answer) % 4 == 0:
                scores[row] = float("nan")
            elif int(prompt.answer) % 3 == 0:
                scores[row] = 1.0
        return scores


def logs(policy: str, out: str, ranks: int) -> None:
    """A run whose ranks have much unlike: failed graders, cut completions, refills, several updates on a batch."""
    record, budget = Record(), TokenBudget(10**9)
    grpo = module(
        policy,
        engine=ByPrompt(TEXTS),
        micro_tokens=90,
        rewards=[Lopsided()],
        objective=DAPO(mask_truncated=True),
        sampling=Sampling(group_size=8, max_tokens=4),
        updates_per_batch=2,
        dynamic_sampling=DynamicSampling(max_rounds=2),
    )
    run = trainer(Path(out), 6, (record, budget), devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, data(train=Sums(60)), run)
    if run.is_global_zero:
        Path(out, f"logs-{ranks}.json").write_text(json.dumps([*record.rows, {"budget": budget.generated}]))


def main(policy: str, out: str, ranks: int) -> None:
    warnings.simplefilter("ignore")
    logs(policy, out, ranks)
    for name, objective in OBJECTIVES.items():
        grpo = module(policy, engine=ByPrompt(TEXTS), micro_tokens=90, objective=objective)
        run = trainer(Path(out), 3, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
        fit(grpo, data(), run)
        if run.is_global_zero:
            torch.save(grpo.model.state_dict(), Path(out, f"{name}-{ranks}.pt"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
