import pytest
import torch

from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from tests.rollout.conftest import PROMPTS


@pytest.fixture
def tiny(load_tiny):
    return load_tiny()


def start(model, tokenizer, **options) -> HFEngine:
    engine = HFEngine(**options)
    engine.start(model, tokenizer, 256)
    return engine


def test_samples_do_not_depend_on_max_rows(tiny):
    sampling = Sampling(group_size=3, max_tokens=40, seed=2)
    whole = start(*tiny).generate(PROMPTS, sampling)
    assert whole.truncated.float().mean() not in (0, 1)  # rows end at different steps, so the batch is compacted
    for max_rows in (1, 6, 9):
        part = start(*tiny, max_rows=max_rows).generate(PROMPTS, sampling)
        assert part.tokens.equal(whole.tokens)
        assert part.truncated.equal(whole.truncated)
        torch.testing.assert_close(part.logprobs, whole.logprobs, atol=1e-5, rtol=0)


def test_every_module_keeps_its_mode(tiny):
    model, tokenizer = tiny
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9  # would change the samples if they were drawn in training mode
    sampling = Sampling(group_size=2, max_tokens=8)
    rollouts = start(model, tokenizer).generate(PROMPTS, sampling)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        dropped, _ = score(model.train(), rollouts.tokens, rollouts.mask)
        policy, _ = score(model.eval(), rollouts.tokens, rollouts.mask)
    assert mismatch(dropped, rollouts.logprobs, rollouts.mask)[1] > 1e-2
    assert mismatch(policy, rollouts.logprobs, rollouts.mask)[1] < 1e-4


def test_sampling_under_autocast_leaves_the_update_its_gradients(tiny):
    """Weights cast for sampling are cached by autocast without gradient history; the update must not find them."""
    model, tokenizer = tiny
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollouts = start(model, tokenizer).generate(PROMPTS, Sampling(group_size=2, max_tokens=4))
        score(model, rollouts.tokens, rollouts.mask)[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "bias" not in n)


def test_a_sliding_window_is_kept(load_tiny):
    """Layers whose cache is not ours to preallocate, with left padding: log-probabilities still agree."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(sliding_window=4, initializer_range=0.2, **sizes, **heads)).eval()
    rollouts = start(model, load_tiny()[1]).generate(PROMPTS, Sampling(group_size=2, max_tokens=12))
    with torch.no_grad():
        policy, _ = score(model, rollouts.tokens, rollouts.mask)
    assert mismatch(policy, rollouts.logprobs, rollouts.mask)[1] < 1e-4
