"""Fuses weights of a Llama-like model: query, key and value into one matrix, gate and up into another.

A model is accepted if its state dict has exactly Llama's names, with optional biases (Qwen2) and norms of queries and
keys (Qwen3). The error for any other model names the first weight that differs. Equal names do not prove equal
computation: `decoder.fuse_weights` compares logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def pairs_as_neighbours(rows: Float[Tensor, "N ..."], width: int) -> Float[Tensor, "N ..."]:
    """Reorders the entries of each head of size `width` to 0, D/2, 1, D/2 + 1, and so on: rotary pairs side by side."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def rotation_table(model: PreTrainedModel, positions: int) -> Complex[Tensor, "L 1 half"]:
    """Computes the model's own rotations of positions 0 to L - 1, rounded to its dtype."""
    numbers = torch.arange(positions, device=model.device)[None]  # (1, L)
    like = torch.zeros(1, dtype=model.dtype, device=model.device)
    cos, sin = model.model.rotary_emb(like, numbers)  # (1, L, D) each, both halves alike
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())


def rotate(heads: Float[Tensor, "R H D"], rotations: Complex[Tensor, "R 1 half"]) -> None:
    """Rotates every head by its row's position, in place; in half precision with the roundings of transformers."""
    pairs = heads.view(*heads.shape[:2], -1, 2)  # (R, H, D/2, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotations)
        return
    (first, second), cos, sin = pairs.unbind(-1), rotations.real.to(heads.dtype), rotations.imag.to(heads.dtype)
    pairs.copy_(torch.stack([first * cos - second * sin, second * cos + first * sin], -1))


# Smallest number of entries for which packing is faster; below it, calling the operator costs more than it saves.
SMALLEST = 2**16


def can_pack(weight: Float[Tensor, "N K"]) -> bool:
    """Whether oneDNN can store this weight in its own memory format; many processors lack what it needs for bfloat16."""
    operators = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and (
            weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())
        )
        and weight.numel() >= SMALLEST
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
    )


def pack(weight: Float[Tensor, "N K"]) -> Tensor:
    """Copies the weight to oneDNN's memory format for `apply_linear`; returns it unchanged if oneDNN can't."""
    if not can_pack(weight):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def apply_linear(x: Float[Tensor, "R K"], weight: Tensor, bias: Float[Tensor, " N"] | None) -> Float[Tensor, "R N"]:
    """Computes `x W^T + b` with a weight from `pack`, without gradient history."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


QUERY, KEY, VALUE, OUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
PROJECTIONS = (QUERY, KEY, VALUE, OUT, GATE, UP, DOWN)
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
REQUIRED = (*(f"{name}.weight" for name in PROJECTIONS), *NORMS)
KNOWN = {*REQUIRED, *(f"{name}.bias" for name in PROJECTIONS), *HEAD_NORMS}
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class NotLlamaLike(Exception):
    """Raised with the reason why a model's weights can't be fused."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model."""

    layers: int
    heads: int
    key_heads: int
    width: int  # of a head
    epsilon: float  # of the norms

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Reads the sizes from a model's configuration.

        Raises:
            NotLlamaLike: naming the setting that a Llama-like model does not have.
        """
        names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_size")
        missing = [name for name in names if not hasattr(config, name)]
        if missing:
            raise NotLlamaLike(f"its configuration has no {missing[0]}")
        if (activation := getattr(config, "hidden_act", None)) != "silu":
            raise NotLlamaLike(f"its activation is {activation}, not silu")
        layers, heads, key_heads, epsilon, hidden = (getattr(config, name) for name in names)
        return cls(layers, heads, key_heads, getattr(config, "head_dim", None) or hidden // heads, epsilon)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer; matrices are results of `pack`, biases are None in models without them."""

    qkv: Tensor  # rows of queries, keys, values; the first two with rotary pairs as neighbours
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    attention_norm: Tensor
    mlp_norm: Tensor
    head_norms: tuple[Tensor, Tensor] | None  # of queries and keys (Qwen3)


@dataclass(frozen=True)
class FusedWeights:
    """Weights of a whole model. Fused and packed matrices are copies; all other tensors are the given ones."""

    shape: Shape
    embedding: Tensor  # (V, hidden)
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor


@torch.no_grad()
def fuse(named_tensors: Iterable[tuple[str, Tensor]], shape: Shape, dtype: torch.dtype) -> FusedWeights:
    """Fuses a state dict layer by layer while it is read, so that at most one layer is in memory twice.

    Args:
        named_tensors: Full state dict, with adapters merged and the tied output head under its own name too.
        shape: Sizes of the model.
        dtype: Floating-point type that the model computes in.

    Raises:
        NotLlamaLike: if a weight is missing, or is not one of a Llama-like model.
    """
    ends: dict[str, Tensor] = {}
    unfused: dict[int, dict[str, Tensor]] = {}
    layers: dict[int, LayerWeights] = {}
    for name, tensor in named_tensors:
        if name in (EMBEDDING, FINAL_NORM, HEAD):
            ends[name] = tensor.detach().to(dtype)
            continue
        layer, name_in_layer = _place(name)
        # A state dict lists layer after layer, so the layer before is complete and can be fused and freed.
        if layer not in unfused and layer - 1 in unfused:
            layers[layer - 1] = _fuse_layer(unfused.pop(layer - 1), layer - 1, shape)
        unfused.setdefault(layer, {})[name_in_layer] = tensor.detach().to(dtype)
    layers |= {layer: _fuse_layer(tensors, layer, shape) for layer, tensors in unfused.items()}
    missing = [name for name in (EMBEDDING, FINAL_NORM, HEAD) if name not in ends]
    missing += [f"model.layers.{i}" for i in range(shape.layers) if i not in layers]
    if missing:
        raise NotLlamaLike(f"{missing[0]} is not among its weights")
    ordered = [layers[i] for i in range(shape.layers)]
    return FusedWeights(shape, ends[EMBEDDING], ordered, ends[FINAL_NORM], pack(ends[HEAD]))


def _place(name: str) -> tuple[int, str]:
    """Splits a weight's name into the layer's number and the name within the layer."""
    path = name.split(".", 3)
    if len(path) < 4 or path[:2] != ["model", "layers"] or not path[2].isdigit() or path[3] not in KNOWN:
        raise NotLlamaLike(f"it has a weight {name}, which a Llama-like model has not")
    return int(path[2]), path[3]


def _fuse_layer(tensors: dict[str, Tensor], layer: int, shape: Shape) -> LayerWeights:
    missing = [name for name in REQUIRED if name not in tensors]
    if missing:
        raise NotLlamaLike(f"model.layers.{layer}.{missing[0]} is not among its weights")
    qkv, gate_up = (QUERY, KEY, VALUE), (GATE, UP)
    norms = [tensors[name] for name in HEAD_NORMS if name in tensors]
    if len(norms) == 1 or any(norm.shape != (shape.width,) for norm in norms):
        raise NotLlamaLike("its queries and keys are not normed alike, head by head")
    query_norm, key_norm = (pairs_as_neighbours(norm, shape.width) for norm in norms) if norms else (None, None)
    return LayerWeights(
        qkv=pack(_stack(tensors, qkv, "weight", shape.width)),  # type: ignore[arg-type]
        qkv_bias=_stack(tensors, qkv, "bias", shape.width),
        out=pack(tensors[f"{OUT}.weight"]),
        out_bias=tensors.get(f"{OUT}.bias"),
        gate_up=pack(_stack(tensors, gate_up, "weight", shape.width)),  # type: ignore[arg-type]
        gate_up_bias=_stack(tensors, gate_up, "bias", shape.width),
        down=pack(tensors[f"{DOWN}.weight"]),
        down_bias=tensors.get(f"{DOWN}.bias"),
        attention_norm=tensors[NORMS[0]],
        mlp_norm=tensors[NORMS[1]],
        head_norms=None if query_norm is None or key_norm is None else (query_norm, key_norm),
    )


def _stack(tensors: dict[str, Tensor], names: tuple[str, ...], kind: str, width: int) -> Tensor | None:
    """Stacks the named weights or biases; None if there are none.

    Raises:
        NotLlamaLike: if only some of the projections have a bias.
    """
    found = {name: tensors[f"{name}.{kind}"] for name in names if f"{name}.{kind}" in tensors}
    if not found:
        return None
    if len(found) < len(names):
        raise NotLlamaLike(f"only {', '.join(found)} of {', '.join(names)} have a {kind}")
    return torch.cat([pairs_as_neighbours(t, width) if n in (QUERY, KEY) else t for n, t in found.items()])
