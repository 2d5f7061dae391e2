"""The policy that is scored is the one that sampled, whatever chance a model or its adapters bring along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.terms import KLPenalty
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.modes import apart_in_training, switch_off_dropout
from saerl_lightning.training.precision import score_as_sampled
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights


@pytest.fixture(scope="module")
def dropping(tiny, tmp_path_factory) -> str:
    """The tiny policy, with dropout in its attention."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("dropping") / "tiny")
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shortcuts": ["lean_layers", "tiled_head", "skip_zero_advantage", "reuse_forward", "sort_by_length"]},
        {"objective": GRPO(kl=KLPenalty(0.1))},
        {"updates_per_batch": 2},
    ],
    ids=["packed", "padded", "reference", "two updates"],
)
def test_a_models_own_dropout_is_off(tiny, dropping, tmp_path, settings):
    """Two steps end on the weights of the same policy without dropout; the guard looks on."""
    ended = []
    for folder in (tiny, dropping):
        grpo = fit(module(folder, **settings), data(), trainer(tmp_path / Path(folder).parent.name, 2))
        assert grpo.trainer.callback_metrics["sampler/mismatch_mean"] < 1e-5
        ended.append(weights(grpo))
    assert largest_difference(*ended) < 1e-7


def test_dropout_of_adapters_is_refused_before_anything_loads():
    with pytest.raises(InputError, match=r"policy\.lora\.dropout is 0\.1; .* write 0"):
        module("no/such/folder", policy=Policy("no/such/folder", lora=LoRA(dropout=0.1)))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64))


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    }
    return OPTForCausalLM(OPTConfig(vocab_size=40, dropout=0.2, attention_dropout=0.2, layerdrop=0.5, **sizes))


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "router_jitter_noise": 0.4, "attention_dropout": 0.2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=40, **sizes, **experts))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("make", [gpt2, opt, mixtral])
def test_every_layer_that_draws_at_random_is_found(make, recompute):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert apart_in_training(model) > 1e-2
    assert switch_off_dropout(model)
    assert apart_in_training(model) == 0
    assert switch_off_dropout(model) == []


def test_random_outputs_that_no_layer_explains_are_refused():
    model = gpt2()

    def noise(layer, inputs, output):
        return output + torch.randn_like(output) if layer.training else output

    model.transformer.h[0].mlp.register_forward_hook(noise)
    with pytest.raises(InputError, match=r"GPT2LMHeadModel computes something else in training mode"):
        score_as_sampled(model)
