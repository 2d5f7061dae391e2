"""`score` against the plain way: all logits of all positions, then log-softmax."""

import math

import numpy as np
import pytest
import torch

from saerl_lightning.policy import logprobs
from saerl_lightning.policy.logprobs import completion_positions, mismatch, score, token_logprobs

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def make(config_class, model_class, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(config_class(**SIZES, **HEADS, initializer_range=0.3, **options)).eval()


@pytest.fixture
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return make(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)


@pytest.fixture
def rows():
    """Ragged rows: prompts of 3, 1 and 5 tokens, completions of 4, 7 and 1, two columns of padding beyond them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 97, (3, 10), generator=generator)
    mask = torch.zeros(3, 10, dtype=torch.bool)
    for r, (start, length) in enumerate([(3, 4), (1, 7), (5, 1)]):
        mask[r, start : start + length] = True
    return tokens, mask


def reference(model, tokens, mask, temperature=1.0):
    logp = (model(tokens).logits.float() / temperature).log_softmax(-1)[:, :-1]
    entropy = -(logp.exp() * logp).sum(-1)
    out = torch.zeros(2, *tokens.shape)
    out[0, :, 1:] = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    out[1, :, 1:] = entropy
    return out * mask


def assert_same_as_reference(model, tokens, mask, temperature, tolerance=1e-5):
    weights = torch.linspace(-1, 1, tokens.numel()).view(tokens.shape)
    gradients = []
    for values in (score(model, tokens, mask, temperature), reference(model, tokens, mask, temperature)):
        model.zero_grad()
        (values[0] * weights).sum().backward()
        gradients.append(torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None]))
        gradients.append(torch.stack([v.detach() for v in values]))
    torch.testing.assert_close(gradients[1], gradients[3], atol=tolerance, rtol=tolerance)
    error = (gradients[0] - gradients[2]).norm() / gradients[2].norm()
    assert error < tolerance, error


def test_token_logprobs_by_hand():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]]) * torch.tensor(3.0).log()  # odds 1:1 and 9:1
    values, entropy = token_logprobs(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(values.exp(), torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(entropy, torch.tensor([0.6931472, 0.3250830]))
    half, _ = token_logprobs(logits, torch.tensor([0, 1]), temperature=2.0)  # odds 1:1 and 3:1
    torch.testing.assert_close(half.exp(), torch.tensor([0.5, 0.25]))


def test_a_large_vocabulary_is_summed_to_its_end():
    """152,000 tokens, of which a thousand stand out: the exact log-probabilities, from sums in extended precision."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 0.5, 152_000)
    logits[:1000] += 12.5
    logits = random.permutation(logits).astype(np.float32)
    exact = logits - np.log(np.exp(logits.astype(np.longdouble)).sum())
    targets = np.array([0, 7, 151_999])
    ours, _ = token_logprobs(torch.tensor(logits).expand(3, -1), torch.tensor(targets))
    np.testing.assert_allclose(ours.double().numpy(), exact[targets].astype(np.float64), atol=4e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1024, 3])
def test_values_and_gradients_are_those_of_the_plain_way(llama, rows, temperature, chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    assert_same_as_reference(llama, *rows, temperature)


def test_the_entropy_carries_no_gradient(llama, rows):
    values, entropy = score(llama, *rows)
    assert values.requires_grad
    assert not entropy.requires_grad


def test_padding_changes_nothing(llama, rows):
    tokens, mask = rows
    padded, padded_mask = torch.nn.functional.pad(tokens, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    after = mask.flip(1).cumsum(1).flip(1) == 0
    other = torch.where(after, (tokens + 1) % 97, tokens)
    expected = score(llama, tokens, mask)
    torch.testing.assert_close(score(llama, padded, padded_mask)[0][:, :10], expected[0])
    assert score(llama, other, mask)[0].equal(expected[0])


def test_bfloat16_is_summed_in_float32(llama, rows):
    values, entropy = score(llama.bfloat16(), *rows)
    expected = reference(llama, *rows)
    assert values.dtype == entropy.dtype == torch.float32
    # A logit that another order of the same sums rounds the other way is one step of bfloat16 off, whatever the processor.
    largest = float(llama(rows[0]).logits.detach().abs().max())
    step = 2.0 ** (math.floor(math.log2(largest)) - 7)
    torch.testing.assert_close(values, expected[0], atol=step, rtol=0)


def test_bfloat16_logits_lose_nothing_more():
    """Against float64, from the same logits: sums in bfloat16 would be 0.03 off."""
    logits = (4 * torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))).bfloat16()
    targets = torch.arange(6)
    exact = logits.double().log_softmax(-1)
    values, entropy = token_logprobs(logits, targets)
    torch.testing.assert_close(values.double(), exact[torch.arange(6), targets], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=0)


def test_adapters_take_part(llama, rows):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(llama, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert_same_as_reference(adapted, *rows, 1.0)


def test_logits_that_a_model_transforms_are_its_own(rows):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    capped = make(Gemma2Config, Gemma2ForCausalLM, head_dim=8, final_logit_softcapping=2.0)
    assert_same_as_reference(capped, *rows, 1.0)


def test_rows_without_completion_tokens_give_zero_gradients(llama, rows):
    tokens, mask = rows
    values, _ = score(llama, tokens, torch.zeros_like(mask))
    values.sum().backward()
    assert not values.any()
    assert all(not p.grad.any() for p in llama.parameters() if p.grad is not None)


def test_positions_and_mismatch_by_hand():
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert completion_positions(mask).tolist() == [1, 2, 5]
    policy = torch.tensor([[9.0, -1.0, -2.0], [9.0, 9.0, -3.0]])
    mean, largest = mismatch(policy, torch.tensor([[0.0, -1.5, -2.0], [0.0, 0.0, -2.0]]), mask)
    assert mean.item() == pytest.approx(0.5)
    assert largest.item() == pytest.approx(1.0)
