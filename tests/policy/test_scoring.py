"""Every way of scoring against the plain one: values, entropies and the gradients of all weights."""

from __future__ import annotations

import logging

import pytest
import torch

from saerl_lightning.policy import scoring
from saerl_lightning.policy.logprobs import score, token_logprobs
from saerl_lightning.policy.scoring import Scorer, TiledHead, why_not_tiled
from tests.policy.test_logprobs import make

WAYS = {
    "shared": {"shared_prefix": True},
    "tiled": {"tiled_head": True},
    "both": {"shared_prefix": True, "tiled_head": True},
}
VOCABULARY = 97


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def llama(request):
    from transformers import LlamaConfig, LlamaForCausalLM

    return make(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=request.param)


@pytest.fixture
def rows():
    """Two prompts of 4 and 2 tokens with three and two ragged completions."""
    generator = torch.Generator().manual_seed(1)
    prompts, starts, lengths = [0, 0, 0, 1, 1], [4, 4, 4, 2, 2], [3, 5, 1, 4, 4]
    tokens = torch.randint(0, VOCABULARY, (5, 10), generator=generator)
    for r, p in enumerate(prompts):
        tokens[r, : starts[r]] = tokens[prompts.index(p), : starts[r]]
    columns = torch.arange(10)
    mask = torch.stack([(columns >= s) & (columns < s + n) for s, n in zip(starts, lengths, strict=True)])
    return tokens, mask, torch.tensor(prompts)


def outcome(model, values, weigh_entropy):
    """Both values, and the gradient of a mixture of them."""
    logprobs, entropy = values
    weights = torch.linspace(-1, 1, logprobs.numel()).view(logprobs.shape)
    model.zero_grad()
    ((logprobs * weights).sum() + (entropy * weights.flip(0)).sum() * weigh_entropy).backward()
    return logprobs.detach(), entropy.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("kept", [0, 2**28])
def test_every_way_of_scoring_gives_the_plain_numbers(
    llama, rows, way, temperature, entropy_gradient, kept, monkeypatch
):
    """With tiles of 4 tokens, kept for the backward pass or computed again."""
    monkeypatch.setitem(scoring.TILE_BYTES, "cpu", 4 * 4 * VOCABULARY)
    monkeypatch.setitem(scoring.KEPT_BYTES, "cpu", kept)
    scorer = Scorer(temperature, entropy_gradient=entropy_gradient, **WAYS[way]).suited(llama, 10)
    assert {"shared_prefix": scorer.shared_prefix, "tiled_head": scorer.tiled_head}.items() >= WAYS[way].items()
    ours = outcome(llama, scorer(llama, *rows), float(entropy_gradient))
    plain = outcome(llama, score(llama, *rows[:2], temperature, entropy_gradient), float(entropy_gradient))
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5 * float(other.abs().max()), rtol=0)


def test_the_entropy_gradient_by_hand():
    """Odds of 9 to 1: dH/dz = -q (log q + H)."""
    hidden = torch.tensor([[2.0, 0.0]], dtype=torch.float64).requires_grad_()
    weight = torch.eye(2, dtype=torch.float64) * torch.tensor(3.0, dtype=torch.float64).log()
    _, entropy = TiledHead.apply(hidden, weight, torch.tensor([0]), 1.0, True)
    entropy.sum().backward()
    q = torch.tensor([0.9, 0.1], dtype=torch.float64)
    expected = -q * (q.log() - (q * q.log()).sum()) * weight.diagonal()
    torch.testing.assert_close(hidden.grad[0], expected, atol=1e-6, rtol=0)


def test_extreme_logits_stay_finite():
    """A token of probability 0 in float32 has the gradient that plain log-softmax gives it."""
    logits = torch.tensor([[0.0, -200.0, 50.0], [300.0, 0.0, 0.0]])
    results = []
    for tiled in (True, False):
        hidden, targets = logits.clone().requires_grad_(), torch.tensor([1, 0])
        if tiled:
            logp, entropy = TiledHead.apply(hidden, torch.eye(3), targets, 1.0, True)
        else:
            logp, entropy = token_logprobs(hidden, targets, 1.0, entropy_gradient=True)
        (logp.sum() + entropy.sum()).backward()
        results.append(torch.cat([logp, entropy, hidden.grad.flatten()]).detach())
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results)


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    """Four times the tokens: the largest tensor that is made stays that of a tile, but for the hidden states' own."""
    monkeypatch.setitem(scoring.TILE_BYTES, "cpu", 2**20)
    monkeypatch.setitem(scoring.KEPT_BYTES, "cpu", 0)
    largest = [largest_tensor(tokens) for tokens in (512, 2048)]
    assert largest[0] == largest[1] <= 2**20


def largest_tensor(tokens: int, vocabulary: int = 4096, width: int = 8) -> int:
    """Bytes of the largest tensor made in a forward and backward pass of the head."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
            return out

    hidden = torch.randn(tokens, width).requires_grad_()
    weight = torch.randn(vocabulary, width).requires_grad_()
    with Largest() as mode:
        logp, _ = TiledHead.apply(hidden, weight, torch.zeros(tokens, dtype=torch.long), 1.0, False)
        logp.sum().backward()
    return mode.bytes


def test_what_a_model_can_not_take_is_left_out_with_the_reason(caplog):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    capped = make(Gemma2Config, Gemma2ForCausalLM, head_dim=8, final_logit_softcapping=2.0)
    with caplog.at_level(logging.WARNING):
        scorer = Scorer(1.0, shared_prefix=True, tiled_head=True).suited(capped, 10)
    assert not (scorer.shared_prefix or scorer.tiled_head)
    assert "transforms its logits" in caplog.text
    assert "its prompt again" in caplog.text
    biased = torch.nn.Linear(3, 4)
    capped.config.final_logit_softcapping = None
    capped.set_output_embeddings(biased)
    assert "no plain linear layer" in why_not_tiled(capped)
