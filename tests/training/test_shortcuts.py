"""Whatever a step leaves out, its weights end where the plain computation takes them."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.shortcuts import Shortcuts
from tests.training.conftest import ParityReward, data, fit, largest_difference, module, trainer, weights
from tests.training.test_grpo_module import Record

SWITCHES = [field.name for field in fields(Shortcuts)]
PLAIN = "none"
OBJECTIVES = {
    "GRPO": GRPO(correction=SamplerCorrection()),
    "KL": GRPO(kl=KLPenalty(0.5)),
    "KL in the reward": GRPO(kl=KLPenalty(0.5, where="reward")),
    "entropy": DAPO(entropy=EntropyTerm(bonus=0.1, top_share=0.5)),
    "truncated": DAPO(mask_truncated=True),
    "sequences": GSPO(),
}


class HalfConstant(ParityReward):
    """Every second prompt earns 1, whatever is said."""

    def __call__(self, prompts, rollouts):
        scores = super().__call__(prompts, rollouts)
        scores[::2] = 1.0
        return scores


def stepped(tiny, folder, **changes):
    """Weights after a step of two updates on ragged prompts and completions, half of the groups without variance."""
    torch.manual_seed(0)  # adapters begin at random
    record = Record()
    settings = {"rewards": [HalfConstant()], "updates_per_batch": 2, "engine": HFEngine(max_rows=16)}
    sampling = Sampling(group_size=8, max_tokens=12, seed=3, temperature=0.8)
    run = fit(module(tiny, **{**settings, "sampling": sampling, **changes}), data(), trainer(folder, 2, (record,)))
    return weights(run), record.rows[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_shortcuts_end_where_the_plain_step_does(tiny, tmp_path, name):
    objective = OBJECTIVES[name]
    # A random policy hardly ever ends by itself, and what is cut has no say in the baseline.
    ends = {"sampling": Sampling(8, max_tokens=12, seed=3, temperature=0.8, stop=tuple("abcdefghijklm"))}
    changes = ends if name == "truncated" else {}
    start = Policy(tiny).load_model().state_dict()
    plain, _ = stepped(tiny, tmp_path, objective=objective, shortcuts=PLAIN, **changes)
    fast, logged = stepped(tiny, tmp_path, objective=objective, micro_tokens=300, **changes)
    assert largest_difference(plain, start) > 1e-3
    assert largest_difference(fast, plain) < 1e-6
    assert (logged["rollouts/scored_frac"] < 1) == objective.skips_zero_advantage


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_shortcut_alone_ends_where_the_plain_step_does(tiny, tmp_path, switch):
    changes = {"policy": Policy(tiny, lora=LoRA(rank=4)), "objective": GRPO()}
    plain, _ = stepped(tiny, tmp_path, shortcuts=PLAIN, **changes)
    one, _ = stepped(tiny, tmp_path, shortcuts=[switch], **changes)
    assert largest_difference(one, plain) < 1e-6


def test_gradient_checkpointing_takes_the_shortcuts_too(tiny, tmp_path):
    plain, _ = stepped(tiny, tmp_path, shortcuts=PLAIN)
    saving, _ = stepped(tiny, tmp_path, policy=Policy(tiny, gradient_checkpointing=True))
    assert largest_difference(saving, plain) < 1e-6


def test_a_step_without_any_advantage_moves_nothing(tiny, tmp_path):
    """Its gradients are zeros and not missing: Adam's moments decay as they would without the shortcut."""

    class Constant(ParityReward):
        def __call__(self, prompts, rollouts):
            return torch.ones(len(prompts), rollouts.group_size)

    end, logged = stepped(tiny, tmp_path, rewards=[Constant()])
    assert largest_difference(end, Policy(tiny).load_model().state_dict()) == 0
    assert logged["rollouts/scored_frac"] == 1 / 32
    assert logged["optim/grad_norm"] == 0
