"""Decoding with fused weights is held to the policy's own forward: every kind of model, every way rows are dropped."""

import math

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.policy.weights import base_model, named_weights
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.fused.decoder import FusedDecoder
from saerl_lightning.rollout.fused.weights import Shape, fuse
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.policy_decoder import PolicyDecoder
from tests.rollout.conftest import PROMPTS

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
STOPPED = Sampling(6, max_tokens=60, seed=1, stop=("e", "t"))
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-biases": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={**LLAMA3, "original_max_position_embeddings": 16},
        )
    ),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=24)),
}


def build(make):
    """A random model whose biases and norms are not the zeros and ones they start as."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def tokenizer(load_tiny):
    return load_tiny()[1]


def start(model, tokenizer, weights=None, **options) -> HFEngine:
    engine = HFEngine(**options)
    engine.start(model, tokenizer, 256)
    engine.load_weights(model.state_dict().items() if weights is None else weights, 1)
    return engine


def worst(model, rollouts) -> float:
    """Largest difference of a reported log-probability from the policy's."""
    with torch.no_grad():
        return mismatch(score(model, rollouts.tokens, rollouts.mask)[0], rollouts.logprobs, rollouts.mask)[1]


@pytest.fixture(params=MODELS)
def model(request):
    return build(MODELS[request.param])


@pytest.mark.parametrize("smallest", [0, 2**62], ids=["packed", "unpacked"])
def test_samples_are_those_of_the_policys_own_forward(model, tokenizer, monkeypatch, smallest):
    """Unequal prompts, rows that end at different steps so that the batch is compacted, and groups that end early."""
    monkeypatch.setattr("saerl_lightning.rollout.fused.weights.SMALLEST", smallest)
    fused, own = start(model, tokenizer), start(model, tokenizer, fused=False)
    assert fused.fallback is None
    assert fused._weights.head.is_mkldnn == (smallest == 0)
    for sampling in (STOPPED, Sampling(3, temperature=0.0, max_tokens=30)):
        rollouts, expected = fused.generate(PROMPTS, sampling), own.generate(PROMPTS, sampling)
        assert rollouts.tokens.equal(expected.tokens)
        assert rollouts.truncated.equal(expected.truncated)
        torch.testing.assert_close(rollouts.logprobs, expected.logprobs, atol=1e-4, rtol=0)
        assert worst(model, rollouts) < 1e-4


def test_rows_end_at_different_steps_in_these_samples(tokenizer):
    """Else the test above would not drop rows: a guard of its settings."""
    lengths = start(build(MODELS["llama"]), tokenizer).generate(PROMPTS, STOPPED).completion_lengths
    assert len(lengths.unique()) > 10


def test_samples_do_not_depend_on_how_often_finished_rows_are_looked_for(tokenizer, monkeypatch):
    """On an accelerator a row may be decoded past its end; nothing of that is read."""
    engine = start(build(MODELS["qwen2-tied"]), tokenizer)
    expected = engine.generate(PROMPTS, STOPPED)
    monkeypatch.setattr("saerl_lightning.rollout.decoding.LOOK_EVERY", {})
    rollouts = engine.generate(PROMPTS, STOPPED)
    assert rollouts.tokens.equal(expected.tokens)
    assert rollouts.truncated.equal(expected.truncated)


@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 6, 7], [8, 9, 10]], [[11]]])
def test_any_rows_may_be_dropped(model, prompts):
    """Groups that shrink unequally and groups that vanish: logits stay those of the policy."""
    draws = torch.Generator().manual_seed(3)
    weights = fuse(model.state_dict().items(), Shape.of(model.config), torch.float32)
    with torch.no_grad():
        decoders = [FusedDecoder(model, weights, prompts, 4, 12), PolicyDecoder(model, prompts, 4, 12)]
        logits, expected = (decoder.prefill() for decoder in decoders)
        for step in range(11):
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            if step % 3 == 1 and len(logits) > 1:
                kept = torch.randperm(len(logits), generator=draws)[: max(1, 2 * len(logits) // 3)].sort().values
                [decoder.keep(kept) for decoder in decoders]
                logits = logits[kept]
            tokens = torch.randint(300, (len(logits),), generator=draws)
            logits, expected = (decoder.step(tokens) for decoder in decoders)


def test_merged_adapters_are_sampled_from_after_each_load(tokenizer):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        build(MODELS["qwen3"]), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    engine = start(base_model(adapted), tokenizer, named_weights(adapted))
    sampling, draws = Sampling(3, max_tokens=12, seed=4), torch.Generator().manual_seed(0)
    before = engine.generate(PROMPTS, sampling)
    assert worst(adapted, before) < 1e-4
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    engine.load_weights(named_weights(adapted), 2)
    after = engine.generate(PROMPTS, sampling)
    assert engine.fallback is None
    assert worst(adapted, after) < 1e-4
    assert worst(adapted, before) > 0.1
    assert after.weight_version.eq(2).all()


def test_bfloat16_is_decoded_in_bfloat16(tokenizer):
    model = build(MODELS["qwen3"]).to(torch.bfloat16)
    fused, own = start(model, tokenizer), start(model, tokenizer, fused=False)
    assert fused.fallback is None
    assert fused._weights.layers[0].qkv.dtype == torch.bfloat16
    with torch.no_grad():
        off = [
            mismatch(score(model, r.tokens, r.mask)[0], r.logprobs, r.mask)[0]
            for r in (engine.generate(PROMPTS, Sampling(4, max_tokens=16)) for engine in (fused, own))
        ]
    assert off[0] < 2 * off[1]  # about as close to the policy as its own forward, which rounds as coarsely


def scaled_layer():
    """A model of Llama's weights that computes otherwise."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 1.01)
    return model


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
OTHERS = {
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        ),
        "num_key_value_heads",
    ),
    "gemma2": (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16)), "whole text"),
    "sliding": (lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)), "whole text"),
    "dynamic": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=DYNAMIC)), "length of the text"),
    "gelu": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), "activation is gelu"),
    "scaled": (scaled_layer, "its logits differ"),
}


@pytest.mark.parametrize(("make", "reason"), OTHERS.values(), ids=OTHERS)
def test_other_models_decode_by_their_own_forward_and_the_log_says_why(tokenizer, caplog, make, reason):
    model = build(make)
    engine = start(model, tokenizer)
    assert reason in engine.fallback
    engine.load_weights(model.state_dict().items(), 2)
    assert [reason in record.getMessage() for record in caplog.records if "saerl" in record.name] == [True]  # said once
    assert worst(model, engine.generate(PROMPTS, Sampling(2, max_tokens=12))) < 1e-4


def test_a_state_dict_that_is_not_the_models_is_not_fused(tokenizer):
    model = build(MODELS["llama"])
    weights = dict(model.state_dict())
    for names, reason in (
        ({"lm_head.weight"}, "lm_head.weight is not among"),
        ({"model.layers.1.mlp.up_proj.weight"}, "layers.1.mlp.up_proj.weight is not among"),
        ({n for n in weights if "layers.1." in n}, "model.layers.1 is not among"),
        (set(weights), "embed_tokens.weight is not among"),
    ):
        assert reason in start(model, tokenizer, [(n, t) for n, t in weights.items() if n not in names]).fallback
    extra = [*weights.items(), ("model.layers.0.self_attn.sinks", torch.zeros(4))]
    assert "self_attn.sinks, which a Llama-like model has not" in start(model, tokenizer, extra).fallback


def test_under_autocast_the_policys_own_forward_decodes(tokenizer):
    model = build(MODELS["llama"])
    engine = start(model, tokenizer)
    assert engine.fallback is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollouts = engine.generate(PROMPTS, Sampling(2, max_tokens=8))
        assert "autocast" in engine.fallback
        with torch.no_grad():
            largest = float(model(rollouts.tokens).logits.abs().max())
        # The logit and the sum may each be rounded the other way by one step of bfloat16.
        assert worst(model, rollouts) <= 2 * 2.0 ** (math.floor(math.log2(largest)) - 7)
        assert "autocast" in start(model, tokenizer).fallback


def test_the_update_after_sampling_has_the_gradients_it_had(model, tokenizer):
    def gradients():
        model.zero_grad()
        model(torch.tensor(PROMPTS[:1]), labels=torch.tensor(PROMPTS[:1])).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    expected, modes = gradients(), [module.training for module in model.train().modules()]
    engine = start(model, tokenizer)
    rollouts = engine.generate(PROMPTS, Sampling(2, max_tokens=6))
    assert engine.fallback is None
    assert [module.training for module in model.modules()] == modes
    assert not any(t.is_inference() for t in (rollouts.tokens, rollouts.mask, rollouts.logprobs))
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    for gradient, before in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, before, atol=0, rtol=0)


def test_sleep_gives_the_copies_back_and_the_samples_stay(tokenizer):
    engine = start(build(MODELS["qwen2-tied"]), tokenizer)
    before = engine.generate(PROMPTS, Sampling(3, max_tokens=10, seed=2))
    engine.sleep()
    assert engine._weights is None
    assert engine.generate(PROMPTS, Sampling(3, max_tokens=10, seed=2)).tokens.equal(before.tokens)


@pytest.mark.parametrize(("max_rows", "groups"), [(1, [1] * 5), (6, [2, 2, 1]), (14, [4, 1]), (15, [5])])
def test_a_stream_joins_to_what_generate_returns(tokenizer, max_rows, groups):
    engine = start(build(MODELS["llama"]), tokenizer, max_rows=max_rows)
    sampling, parts = Sampling(3, max_tokens=10, seed=2), []
    for part in engine.stream(PROMPTS, sampling):
        assert torch.is_grad_enabled()  # what comes between two parts may train
        assert not torch.is_inference_mode_enabled()
        parts.append(part)
    assert [len(part.tokens) // 3 for part in parts] == groups
    joined, whole = Rollouts.join(parts), start(engine._model, tokenizer).generate(PROMPTS, sampling)
    for name in ("tokens", "mask", "truncated", "weight_version"):
        assert getattr(joined, name).equal(getattr(whole, name))
    assert joined.texts == whole.texts
    torch.testing.assert_close(joined.logprobs, whole.logprobs, atol=1e-5, rtol=0)


def test_a_stream_refuses_before_its_first_part(tokenizer):
    with pytest.raises(RuntimeError, match="before start"):
        HFEngine().stream(PROMPTS, Sampling())
