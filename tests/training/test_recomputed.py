"""Steps of a run against the same steps computed again, row by row, by transformers' own forward and formulas written here.

Nothing of the step's code has a part in the second computation: no scorer, no micro-batches, no objective, no clipping, no
optimiser, no reference class. The rollouts alone are taken from the run.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.terms import KLPenalty
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.records import Sampling
from tests.training.conftest import ParityReward, Sums, data, fit, largest_difference, module, trainer, weights
from tests.training.ranks import TEXTS, ByPrompt
from tests.training.test_grpo_module import Record

RATE, NORM, TEMPERATURE, WEIGHT = 0.3, 0.4, 0.8, 0.7


class Rollouts(lightning.Callback):
    """Keeps the first weights, and each batch's rollouts with their rewards."""

    def on_train_start(self, trainer, pl_module):
        self.start, self.steps = weights(pl_module), []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(pl_module.last_step)


def logprobs_of(model, rollouts) -> list[torch.Tensor]:
    """Log-probabilities of every row's completion tokens, one forward a row, without padding."""
    found = []
    for tokens, mask in zip(rollouts.tokens, rollouts.mask, strict=True):
        places = mask.nonzero().flatten()
        logits = model(tokens[None, : int(places[-1]) + 1]).logits[0] / TEMPERATURE
        found.append(logits.log_softmax(-1)[places - 1, tokens[places]])
    return found


def recomputed_advantages(step, logprobs, reference, in_reward: bool, seen: list[bool]) -> np.ndarray:
    """(r - mean) / (std + 1e-4) of the completions that are seen, one group after another; 0 for the others."""
    rewards = step.total.flatten().double().numpy().copy()
    if in_reward:
        rewards -= [WEIGHT * float((p - q).square().sum()) / 2 for p, q in zip(logprobs, reference, strict=True)]
    advantages, size = np.zeros(len(rewards)), step.total.shape[1]
    for first in range(0, len(rewards), size):
        members = [row for row in range(first, first + size) if seen[row]]
        group = rewards[members]
        if len(members) > 1 and np.ptp(group) > 0:
            advantages[members] = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
    return advantages


def recompute(model, reference, steps, updates: int, mask_truncated: bool, where: str, by_row: bool) -> list[float]:
    """Takes the steps of the run; returns the mean k2 estimate of the KL in each batch, over updates and seen tokens."""
    kls = []
    for step in steps:
        rollouts = step.rollouts
        with torch.no_grad():
            old, ref = logprobs_of(model, rollouts), logprobs_of(reference, rollouts)
        seen = [not (mask_truncated and cut) for cut in rollouts.truncated.tolist()]
        advantages = recomputed_advantages(step, old, ref, where == "reward", seen)
        scored = [s and (where == "loss" or a != 0) for s, a in zip(seen, advantages, strict=True)]
        tokens = sum(len(row) for row, s in zip(old, seen, strict=True) if s)
        batch = []
        for _ in range(updates):
            loss, kl = torch.zeros(()), 0.0
            for row, now in enumerate(logprobs_of(model, rollouts)):
                if not seen[row]:
                    continue
                ratio, a = (now - old[row]).exp(), float(advantages[row])
                gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
                estimate = (now - ref[row]) ** 2 / 2
                term = gain - (WEIGHT * estimate if where == "loss" else 0.0)
                loss = loss - (term.mean() / sum(seen) if by_row else term.sum() / tokens)
                kl += float(estimate.detach().sum()) if scored[row] else 0.0
            batch.append(kl / sum(len(row) for row, s in zip(old, scored, strict=True) if s))
            trained = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            norm = sum(float((g**2).sum()) for g in gradients if g is not None) ** 0.5
            assert norm > NORM / 4
            with torch.no_grad():
                for parameter, g in zip(trained, gradients, strict=True):
                    if g is not None:
                        parameter -= RATE * g * min(1.0, NORM / norm)
        kls.append(sum(batch) / updates)
    return kls


@pytest.mark.parametrize(
    ("mask_truncated", "where", "updates", "lora"),
    [
        (True, "loss", 1, None),
        (True, "reward", 2, None),
        (False, "reward", 1, LoRA(rank=4, alpha=24)),
        (False, "loss", 2, LoRA(rank=4, alpha=24)),
    ],
)
def test_a_run_takes_the_steps_that_are_computed_again(tiny, tmp_path, mask_truncated, where, updates, lora):
    """Two batches: the reference is the policy as it was before the first, and gradients begin anew with every update."""
    torch.manual_seed(1)
    keep, record = Rollouts(), Record()
    kl = KLPenalty(WEIGHT, "k2", where)
    grpo = module(
        tiny,
        policy=Policy(tiny, lora=lora),
        engine=ByPrompt(TEXTS),
        objective=DAPO(clip_high=0.2, mask_truncated=True, kl=kl) if mask_truncated else GRPO(kl=kl),
        sampling=Sampling(group_size=8, max_tokens=4, temperature=TEMPERATURE),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        max_grad_norm=NORM,
        updates_per_batch=updates,
        micro_tokens=120,
    )
    fit(grpo, data(), trainer(tmp_path, 2 * updates, (keep, record)))
    assert 0 < sum(step.rollouts.truncated.sum() for step in keep.steps) < 64
    model = Policy(tiny, lora=lora).load_model()
    model.load_state_dict(keep.start)
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    kls = recompute(model, reference, keep.steps, updates, mask_truncated, where, by_row=not mask_truncated)
    again = {name: value.detach() for name, value in model.state_dict().items()}
    assert largest_difference(again, keep.start) > 1e-3
    assert largest_difference(weights(grpo), again) < 2e-5
    assert [row["policy/kl"] for row in record.rows] == pytest.approx(kls, rel=1e-3, abs=1e-6)
    assert kls[1] > 1e-6  # the reference stayed behind


# -- seeds, rates, rewards: what a run is told and what it does --------------------------------------------------------


class Spy(ByPrompt):
    """Notes every sampling it is asked for, and the prompts."""

    def __init__(self, completions):
        super().__init__(completions)
        self.asked = []

    def generate(self, prompt_ids, sampling):
        self.asked.append(sampling)
        return super().generate(prompt_ids, sampling)


class OtherSums(Sums):
    """The same sums in other words, as a set to evaluate on."""

    def load(self):
        asked = [({"role": "user", "content": f"What is {p.text}"},) for p in super().load()]
        return [replace(p, uid=f"val/{p.uid}", messages=m) for p, m in zip(super().load(), asked, strict=True)]


class SecondReward(ParityReward):
    """Gives every completion one."""

    name = "second"

    def __call__(self, prompts, rollouts):
        return torch.ones(len(prompts), rollouts.group_size)


class FirstReward(ParityReward):
    """Gives the first completion of each group one, and the others nothing."""

    def __call__(self, prompts, rollouts):
        scores = torch.zeros(len(prompts), rollouts.group_size)
        scores[:, 0] = 1.0
        return scores


def test_every_batch_is_sampled_with_a_seed_of_its_own(tiny, tmp_path):
    """Also each update's successor, and each batch of a validation; but each validation with the seeds of the last."""
    spy = Spy(TEXTS)
    own = Sampling(group_size=2, max_tokens=3, seed=11, temperature=0.5)
    datamodule = data(val_batch_size=4, val={"sums": ValidationSet(OtherSums(12), sampling=own)})
    grpo = module(tiny, engine=spy, updates_per_batch=2, rewards=[FirstReward(), SecondReward()])
    run = trainer(tmp_path, 8, val_check_interval=2, check_val_every_n_epoch=None)
    fit(grpo, datamodule, run)
    training = [asked for asked in spy.asked if asked.group_size == 8]
    validation = [asked for asked in spy.asked if asked.group_size == 2]
    assert len({asked.seed for asked in training}) == len(training) == 4
    assert {(asked.temperature, asked.max_tokens) for asked in validation} == {(0.5, 3)}
    half = len(validation) // 2
    first, second = (
        [(asked.seed, tuple(asked.places)) for asked in part] for part in (validation[:half], validation[half:])
    )
    assert first == second and len(set(first)) == half > 1
    assert float(run.callback_metrics["val/sums/avg@2"]) == 0.5  # the first reward grades, not the sum nor the second


def test_a_schedule_is_stepped_once_an_update(tiny, tmp_path):
    """Halved after every update, two a batch: 0.5 and 0.25, then 0.125 and 0.0625; logged are the means."""
    record = Record()
    halving = lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5)  # noqa: E731
    grpo = module(tiny, lr_scheduler=halving, updates_per_batch=2)
    fit(grpo, data(), trainer(tmp_path, 4, (record,)))
    assert [row["optim/lr"] for row in record.rows] == pytest.approx([0.375, 0.09375])


def draw() -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


class Draws(lightning.Callback):
    """Draws from the global generators as training starts, and before every checkpoint, which it also puts back."""

    def __init__(self) -> None:
        self.next: dict[int, tuple[float, ...]] = {}

    def on_train_start(self, *_):
        self.first = draw()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        self.next[trainer.global_step] = draw()
        for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
            restore(state)
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


def test_a_resumed_run_goes_on_with_the_random_numbers_of_the_first(tiny, tmp_path):
    whole, again = Draws(), Draws()
    fit(module(tiny), data(), trainer(tmp_path, 3, (whole,)))
    random.seed(99), np.random.seed(99), torch.manual_seed(99)  # noqa: NPY002
    fit(module(tiny), data(), trainer(tmp_path, 3, (again,)), ckpt_path=tmp_path / "2.ckpt")
    assert again.first == whole.next[2] != whole.next[1]


# -- the policy is loaded as it is told --------------------------------------------------------------------------------


def test_adapters_weigh_alpha_over_rank(tiny):
    """What the adapters add to a layer's output is alpha / rank times B A x, with the rank and the targets asked for."""
    from peft.tuners.lora import LoraLayer

    model = Policy(tiny, lora=LoRA(rank=3, alpha=12, dropout=0.25, targets=["q_proj", "o_proj"])).load_model()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "o_proj"}
    layer = next(iter(layers.values()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 3
    assert layer.lora_dropout["default"].p == 0.25
    torch.nn.init.normal_(b)
    x = torch.randn(2, a.shape[1])
    added = layer.eval()(x) - layer.base_layer(x)
    torch.testing.assert_close(added, 12 / 3 * x @ a.T @ b.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_dtype_and_the_attention_that_is_asked_for(tiny, dtype):
    model = Policy(tiny, dtype=dtype, attention="eager").load_model()
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == "eager"
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_gradient_checkpointing_runs_each_layer_twice(tiny, tmp_path, lora):
    """In a step of one micro-batch: once forward, once more in the backward pass; without it once."""

    def passes(checkpointing: bool) -> int:
        policy = Policy(tiny, lora=lora, gradient_checkpointing=checkpointing)
        plain = ["tiled_head", "skip_zero_advantage", "reuse_forward", "sort_by_length", "overlap_grading"]
        grpo = module(tiny, policy=policy, engine=ByPrompt(TEXTS), guard=None, shortcuts=plain)
        counted = Counted()
        fit(grpo, data(), trainer(tmp_path, 1, (counted,)))
        return counted.passes

    assert (passes(False), passes(True)) == (1, 2)


class Counted(lightning.Callback):
    """Counts how often the first layer's norm runs with gradient enabled."""

    passes = 0

    def on_train_start(self, trainer, pl_module):
        def count(*_):
            self.passes += torch.is_grad_enabled()

        first = next(m for n, m in pl_module.model.named_modules() if n.endswith("layers.0.input_layernorm"))
        first.register_forward_pre_hook(count)
