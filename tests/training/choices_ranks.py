"""Steps that keep, weigh and mix, over N processes: `choices_ranks.py POLICY FOLDER N`, for test_kept_and_weighted.py."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.keeping.pods import PODS
from saerl_lightning.objective.keeping.top_advantages import TopAdvantages
from saerl_lightning.objective.reweighting.advantage_band import AdvantageBand
from saerl_lightning.objective.reweighting.ar import AR
from saerl_lightning.objective.reweighting.predicted_weights import PredictedWeights
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.domain_mix import DomainMix
from saerl_lightning.online.domains import LabelDomains
from saerl_lightning.online.mixers.dads import DADS
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.selection import Selection
from saerl_lightning.reward.reward import Reward
from tests.training.conftest import data, fit, module, trainer
from tests.training.test_grpo_module import Record
from tests.training.test_kept_and_weighted import Levels

CASES = {
    "advantages": {"objective": GRPO(), "keep": TopAdvantages(0.6), "reweighting": AdvantageBand()},
    "tokens": {"objective": DAPO(), "keep": PODS(5), "reweighting": AR()},
    "predicted": {"objective": GRPO(), "reweighting": PredictedWeights("difficulty")},
}


class EvenShare(Reward):
    """Share of even tokens."""

    def __call__(self, prompts, rollouts):
        even = ((rollouts.tokens % 2 == 0) & rollouts.mask).sum(1) / rollouts.mask.sum(1)
        return even.view(len(prompts), rollouts.group_size)


def run(policy: str, out: Path, ranks: int, name: str) -> None:
    record = Record()
    grpo = module(policy, rewards=[EvenShare()], micro_tokens=90, **CASES[name])
    within = Selection(PromptBeta(), Nearest(), repeats=True) if name == "predicted" else None
    prompts = data(train=Levels(60), online=DomainMix(DADS(), LabelDomains(), within=within))
    on = trainer(out, 5, (record,), devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fit(grpo, prompts, on)
    if on.is_global_zero:
        torch.save(grpo.model.state_dict(), out / f"{name}-{ranks}.pt")
        rows = prompts.planned.sampler.plan.rows[: 5 * 4].tolist()
        Path(out, f"{name}-{ranks}.json").write_text(json.dumps([record.rows, rows]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in CASES:
        run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), each)
