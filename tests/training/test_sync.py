"""The engine samples from the weights that stand in the policy, whoever put them there and whenever."""

from __future__ import annotations

import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.policy.weights import fingerprint
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from tests.training.conftest import Sums, data, fit, module, trainer


class Watched(HFEngine):
    """Notes how far every sample is from the weights that the policy has at that moment, and who sent weights when."""

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.versions = [], []

    def generate(self, prompt_ids, sampling):
        rollouts = super().generate(prompt_ids, sampling)
        with torch.no_grad():
            policy, _ = score(self._model, rollouts.tokens, rollouts.mask)
        self.apart.append(float(mismatch(policy, rollouts.logprobs, rollouts.mask)[0]))
        return rollouts

    def load_weights(self, named_tensors, version):
        super().load_weights(named_tensors, version)
        self.versions.append(version)


class HeldOut(Sums):
    """Sums that training does not have."""

    def load(self):
        return super().load()[30:]


def averaged(tiny, folder, engine):
    """Two large steps, each followed by validation, which samples the average of all weights so far."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
        sets = {"sums": HeldOut(36)}
        prompts = data(val=sets, val_sampling=Sampling(group_size=2, max_tokens=6))
        averages = EMAWeightAveraging(decay=0.5)
        run = trainer(folder, 2, (averages,), val_check_interval=1, check_val_every_n_epoch=None)
        return fit(module(tiny, engine=engine), prompts, run)


def test_validation_under_weight_averaging_samples_the_average(tiny, tmp_path):
    engine = Watched()
    averaged(tiny, tmp_path, engine)
    assert len(engine.apart) == 2
    assert max(engine.apart) < 1e-5, engine.apart
    assert engine.versions == sorted(set(engine.versions))


class Halved(lightning.Callback):
    """Puts other weights in the policy's place between two steps, without any optimiser."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        for weight in pl_module.model.parameters():
            weight.data.mul_(0.9)


def test_weights_that_a_callback_changes_are_sampled_from(tiny, tmp_path):
    """The guard would stop the second step."""
    grpo = fit(module(tiny), data(), trainer(tmp_path, 3, (Halved(),)))
    assert grpo.trainer.callback_metrics["sampler/mismatch_mean"] < 1e-5


def test_equal_weights_are_sent_once(tiny, tmp_path):
    engine = Watched()
    grpo = fit(module(tiny, engine=engine), data(), trainer(tmp_path, 3))
    assert engine.versions == [1, 2, 3, 4]
    assert grpo.weight_version == 4


CHANGES = {
    "one number": lambda weight: weight.data.view(-1)[-1:].add_(1e-3),
    "all signs": lambda weight: weight.data.neg_(),
    "other numbers": lambda weight: weight.data.copy_(torch.randn_like(weight)),
    "an update": lambda weight: weight.add_(weight, alpha=1e-6),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "policy", [{}, {"dtype": "bfloat16"}, {"lora": LoRA(rank=4)}], ids=["float32", "bfloat16", "LoRA"]
)
def test_a_fingerprint_tells_weights_apart(tiny, policy, change):
    if change == "an update" and "dtype" in policy:
        pytest.skip("bfloat16 has no numbers so close")
    model = Policy(tiny, **policy).load_model()
    before = fingerprint(model)
    assert fingerprint(model) == before
    weight = next(p for n, p in model.named_parameters() if "mlp.down_proj" in n)
    kept = weight.detach().clone()
    with torch.no_grad():
        CHANGES[change](weight)
        assert fingerprint(model) != before
        weight.data.copy_(kept)
    assert fingerprint(model) == before
