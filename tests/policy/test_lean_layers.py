"""Layers that keep less give what transformers' own give, gradients included, and do keep less."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from saerl_lightning.policy.lean_layers import GatedSiLU, RMSNorm, make_lean
from tests.policy.test_logprobs import make

FAMILIES = [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]
TOKENS = torch.arange(24).view(2, 12) % 97


def outcome(model):
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(TOKENS).logits
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0].model_type)
def test_values_and_gradients_are_those_of_the_plain_layers(family):
    plain = make(*family, head_dim=8).train()
    lean = copy.deepcopy(plain)
    per_layer = 5 if family[0] is Qwen3Config else 3  # two norms and an MLP, in Qwen3 the norms of queries and keys too
    assert make_lean(lean) == 2 * per_layer + 1
    (logits, gradient, size), (expected, wanted, plain_size) = outcome(lean), outcome(plain)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (gradient - wanted).norm() < 1e-5 * wanted.norm()
    assert size < 0.9 * plain_size
    assert lean.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_of_a_lean_model_has_its_own_weights():
    lean = make(*FAMILIES[0])
    make_lean(lean)
    other = copy.deepcopy(lean)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert not other(TOKENS).logits.any()
    assert lean(TOKENS).logits.any()


def test_derivatives_by_finite_differences():
    torch.manual_seed(0)
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GatedSiLU.apply, (x, y))


def test_the_norm_by_hand():
    """Of (3, 4) the mean square is 12.5; weights 1 and 2. The gradient along x vanishes, for the norm ignores length."""
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    out = RMSNorm.apply(x, torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    out.sum().backward()
    assert (x.grad * x).sum().abs() < 1e-6


def test_models_of_other_architectures_are_not_made_lean():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    assert make_lean(make(Gemma2Config, Gemma2ForCausalLM, head_dim=8)) == 0
