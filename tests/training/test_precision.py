"""Weights that are optimised are float32, whatever they are multiplied in: refusals, loss scaling, and the total update."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.sae.module import SAEModule
from saerl_lightning.training.sft import SFTModule
from tests.training.conftest import ParityReward, data, fit, largest_difference, module, trainer, weights
from tests.training.test_grpo_module import Record


def sft(tiny: str, **changes) -> SFTModule:
    return SFTModule(**{"policy": Policy(tiny), "engine": HFEngine(), "rewards": [ParityReward()], **changes})


def agreement(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], start: dict[str, torch.Tensor]):
    """Cosine and ratio of norms of two total updates, in float64."""
    a, b = (torch.cat([(end[n].double() - start[n].double()).flatten() for n in start]) for end in (one, two))
    return float(a @ b / (a.norm() * b.norm())), float(b.norm() / a.norm())


REFUSED = {
    "bfloat16 weights": ({"dtype": "bfloat16"}, "32-true", "dtype: float32.*bf16-mixed"),
    "bfloat16 weights, mixed": ({"dtype": "bfloat16"}, "bf16-mixed", "dtype: float32"),
    "bf16-true": ({}, "bf16-true", "write bf16-mixed"),
    "16-true": ({}, "16-true", "write bf16-mixed"),
    "64-true": ({}, "64-true", "write bf16-mixed .* or 32-true"),
    "bf16-true adapters": ({"lora": LoRA()}, "bf16-true", "write bf16-mixed"),
}


@pytest.mark.parametrize("kind", [module, sft], ids=["GRPO", "SFT"])
@pytest.mark.parametrize(("policy", "precision", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_are_not_float32_are_not_trained(tmp_path, kind, policy, precision, message):
    """Before anything is read: the policy's folder does not exist, and the prompts' file neither."""
    made = kind("/nowhere", policy=Policy("/nowhere", **policy))
    with pytest.raises(InputError, match=message):
        fit(made, data(train="/nowhere.jsonl"), trainer(tmp_path, 1, precision=precision))
    assert not hasattr(made, "model")


def test_an_sae_is_not_trained_in_half_precision(tmp_path):
    with pytest.raises(InputError, match="write bf16-mixed"):
        fit(SAEModule(), data(train="/nowhere.jsonl"), trainer(tmp_path, 1, precision="bf16-true"))


def adamw(rate: float, **more):
    return lambda params: torch.optim.AdamW(params, lr=rate, **more)


class Deaf(torch.optim.SGD):
    """Never calls the closure that it is given."""

    def step(self, closure=None):
        return super().step()


UNSTEPPABLE = {
    "negative": ({"optimizer": adamw(-1.0)}, r"model.optimizer .*-1\.0"),
    "NaN": ({"optimizer": adamw(math.nan)}, "nan"),
    "absurd": ({"optimizer": adamw(1e30)}, r"learning rate is 1e\+30; write a number from 0 to 1000"),
    "infinite": ({"optimizer": adamw(math.inf)}, "learning rate is inf"),
    "betas": ({"optimizer": adamw(1e-3, betas=(2.0, 0.9))}, "model.optimizer can't take a step"),
    "LBFGS": ({"optimizer": torch.optim.LBFGS}, "model.optimizer can't take a step"),
    "deaf": ({"optimizer": Deaf}, "does not call its closure"),
    "plateau": ({"lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "model.lr_scheduler .*metrics"),
}


@pytest.mark.parametrize(("changes", "message"), UNSTEPPABLE.values(), ids=UNSTEPPABLE)
def test_an_optimiser_that_cannot_step_is_refused_at_the_door(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        fit(module("/nowhere", **changes), data(train="/nowhere.jsonl"), trainer(tmp_path, 1))


# -- loss scaling ------------------------------------------------------------------------------------------------------


def scaled(scale: float, **settings) -> list[MixedPrecision]:
    """16-mixed as on a GPU; on a CPU Lightning itself would take bfloat16."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **settings))]


OPTIMISERS = {
    "fused": lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, fused=True),
    "plain": lambda params: torch.optim.SGD(params, lr=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMISERS.values(), ids=OPTIMISERS)
def test_scaled_gradients_are_unscaled_before_they_are_clipped_and_logged(tiny, tmp_path, optimizer):
    """The norms and the weights are those of float32; a scaled norm would be 4,096 times as large."""
    runs, start = [], Policy(tiny).load_model().state_dict()
    for plugins in ([], scaled(4096.0)):
        record = Record()
        made = sft(tiny, optimizer=optimizer, max_grad_norm=0.5)
        fit(made, data(), trainer(tmp_path, 3, (record,), plugins=plugins))
        runs.append(([row["optim/grad_norm"] for row in record.rows], weights(made)))
    (exact, whole), (norms, half) = runs
    assert exact[0] > 1.0  # clipping is at work
    assert norms == pytest.approx(exact, rel=0.02)
    cosine, ratio = agreement(whole, half, start)
    assert cosine > 0.99 and ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("optimizer", OPTIMISERS.values(), ids=OPTIMISERS)
def test_an_overflow_is_a_step_that_is_left_out_and_counted(tiny, tmp_path, optimizer):
    start = Policy(tiny).load_model().state_dict()
    for steps, skipped in ((1, [1]), (3, [1, 1, 1])):
        record, made = Record(), sft(tiny, optimizer=optimizer)
        plugins = scaled(2.0**60, backoff_factor=2.0**-48)
        fit(made, data(), trainer(tmp_path, steps, (record,), plugins=plugins))
        assert [row["optim/skipped_steps"] for row in record.rows] == skipped
        moved = largest_difference(weights(made), start)
        assert moved == 0 if steps == 1 else 0 < moved < 0.1


def test_gradients_that_are_nan_at_a_small_scale_stop_the_run(tiny, tmp_path):
    """Gradients that are no number at a scale below 1 are no overflow."""

    class Broken(SFTModule):
        def on_before_optimizer_step(self, optimizer):
            next(self.model.parameters()).grad.fill_(math.nan)
            super().on_before_optimizer_step(optimizer)

    broken = Broken(Policy(tiny), HFEngine(), [ParityReward()], optimizer=OPTIMISERS["fused"])
    with pytest.raises(RunStopped, match="gradient norm"):
        fit(broken, data(), trainer(tmp_path, 3, plugins=scaled(1.5)))
    assert broken.gradients.skipped == 1


# -- the total update --------------------------------------------------------------------------------------------------


class Recorded(RolloutEngine):
    """Records what an engine samples, or plays it back, so that every precision trains on the same tokens."""

    def __init__(self, recorded: list | None = None) -> None:
        self.played, self.kept = recorded, []
        self.inner = HFEngine(fused=False)

    def start(self, *given):
        self.inner.start(*given)

    def generate(self, prompt_ids, sampling):
        if self.played is not None:
            self.kept.append(self.played[len(self.kept)])
        else:
            self.kept.append(self.inner.generate(prompt_ids, sampling))
        return self.kept[-1]

    def load_weights(self, named_tensors, version):
        self.inner.load_weights(named_tensors, version)

    def close(self):
        self.inner.close()


STEPS = 20
ALLOWED = {  # precision of the trainer, dtype of the weights, plugins: everything that `require_trainable` lets pass
    "bf16-mixed": ("bf16-mixed", "float32", None),
    "16-mixed": (None, "float32", 4096.0),
}
ADAPTED = {"bf16 base": ("32-true", "bfloat16", None), "bf16 base, mixed": ("bf16-mixed", "bfloat16", None)} | ALLOWED


def trained(policy: Policy, folder, played, precision=None, scale=None, **changes):
    """Weights at the start and after 20 steps of AdamW at 1e-6, and what was sampled."""
    torch.manual_seed(0)  # of the adapters
    engine = Recorded(played)
    made = module(
        policy.path, policy=policy, engine=engine, optimizer=adamw(1e-6, weight_decay=0.0), guard=None, **changes
    )
    made.configure_model()
    start = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    plugins = {"plugins": scaled(scale)} if scale else {"precision": precision or "32-true"}
    fit(made, data(), trainer(folder, STEPS, **plugins))
    return start, {name: p.detach() for name, p in made.model.named_parameters() if p.requires_grad}, engine.kept


CASES = [*((None, *case) for case in ALLOWED.items()), *((LoRA(rank=4, alpha=8), *case) for case in ADAPTED.items())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "name", "case"), CASES, ids=[f"{'LoRA' if lora else 'full'} {n}" for lora, n, _ in CASES]
)
def test_the_total_update_is_that_of_float32(tiny, tmp_path, lora, name, case):
    precision, dtype, scale = case
    start, whole, kept = trained(Policy(tiny, lora=lora), tmp_path, None)
    own_start, half, _ = trained(Policy(tiny, dtype=dtype, lora=lora), tmp_path, kept, precision, scale)
    assert all(p.dtype == torch.float32 for p in half.values())
    own = {n: start[n] + (half[n] - own_start[n]) for n in start}  # bfloat16 rounds the adapters' random start
    cosine, ratio = agreement(whole, own, start)
    print(f"{name}: cosine {cosine:.4f}, ratio {ratio:.4f}")
    assert cosine >= 0.95 and 0.95 <= ratio <= 1.05
