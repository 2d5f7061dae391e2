"""Norms and MLPs that recompute cheap intermediates in the backward pass instead of storing them.

In transformers a norm or an MLP is several operations, and each of them stores its inputs for the backward pass: a
fifth of all activations of a Llama. Here each is one autograd function. The values are equal up to the last rounding.
Only `forward` is replaced: weights, names and state dict stay as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

NORMS = {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
MLPS = {"LlamaMLP", "Qwen2MLP", "Qwen3MLP"}


class RMSNorm(torch.autograd.Function):
    """Root mean square norm, weight * x / rms(x), computed in float32; stores x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*n d"], weight: Float[Tensor, " d"], epsilon: float) -> Tensor:
        """Norms the last dimension."""
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()  # (*n, 1)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor | None, None]:
        """With u = x / rms: dx = (w g - u mean(u w g)) / rms, dw = sum(g u)."""
        x, weight, scale = ctx.saved_tensors
        unit = x.float() * scale
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * unit.to(x.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        # The norm doesn't change with the length of x, so the gradient's component along x is subtracted.
        slope = (grad * weight).float()
        along = torch.linalg.vecdot(slope, unit).div_(unit.shape[-1])
        return slope.addcmul_(unit, along[..., None], value=-1).mul_(scale).to(x.dtype), d_weight, None


class GatedSiLU(torch.autograd.Function):
    """Gated activation, silu(gate) * up; stores the two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Float[Tensor, "*n d"], up: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Multiplies silu(gate) by up, element by element."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Computes silu(gate) again."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # pyright: ignore[reportReturnType]


def _mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(GatedSiLU.apply(module.gate_proj(x), module.up_proj(x)))


def make_lean(model: nn.Module) -> int:
    """Replaces the forward of the RMS norms and SiLU-gated MLPs of Llama, Qwen2 and Qwen3, with or without adapters.

    Returns:
        How many layers were replaced; 0 for other models, which stay as they are.
    """
    replaced = 0
    for module in model.modules():
        kind = type(module).__name__
        if kind in NORMS:
            module.forward = MethodType(_norm, module)
        elif kind in MLPS and isinstance(module.act_fn, nn.SiLU | _transformers_silu()):
            module.forward = MethodType(_mlp, module)
        else:
            continue
        replaced += 1
    return replaced


def _transformers_silu() -> type[nn.Module]:
    from transformers.activations import SiLUActivation

    return SiLUActivation
