"""FusedDecoder: decodes a Llama-like model (Llama, Qwen2, Qwen3 and their like) by a forward of a dozen operations a layer.

It computes what transformers computes, and is held to that by a trial before it is used. No gradients, no dropout, no
autocast; sliding windows and rotary embeddings that change with the length of the text are not its work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from saerl_lightning.rollout.decoding import Decoder
from saerl_lightning.rollout.fused_weights import FusedWeights, LayerWeights, Shape
from saerl_lightning.rollout.group_cache import GroupCache
from saerl_lightning.rollout.packed_linear import apply_linear
from saerl_lightning.rollout.rotary import rotate, rotation_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# H queries, K keys and K values of one layer (N, H + 2K, D) -> the heads' outputs side by side (N, H D).
Attention = Callable[[Tensor], Tensor]


class FusedDecoder(Decoder):
    """P prompts and their G completions each, decoded with fused weights.

    Args:
        model: the policy; it gives rotary embedding, device and dtype, no weights.
        weights: its weights, fused.
        prompts: P lists of token ids.
        group_size: rows a prompt becomes.
        steps: most tokens a completion gets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: FusedWeights,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        steps: int,
    ) -> None:
        self.weights, self.prompts, self.steps = weights, prompts, steps
        self.device = model.device
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)  # (P,)
        self.lengths = lengths
        self.rotations = rotation_table(model, max(map(len, prompts)) + steps)  # (longest row, 1, D/2)
        self.caches: list[GroupCache] = []  # one a layer
        # Rows are cells of a (P, G) grid. After rows were dropped some cells are empty, and compute on any row's values.
        self.grid = (len(prompts), group_size)
        self.cells = torch.arange(len(prompts) * group_size, device=self.device)  # (R,): the cell of each row
        self.row_of_cell: Tensor | None = None  # (P G,); null while row i is cell i
        self.positions = lengths.repeat_interleave(group_size)  # (R,): position of the next token of each row
        self.hidden = None  # (P K, 1, L): minus infinity behind a prompt shorter than the longest
        if len(set(map(len, prompts))) > 1:
            behind = torch.arange(max(map(len, prompts)), device=self.device) >= lengths[:, None]
            hidden = torch.zeros(behind.shape, dtype=model.dtype, device=self.device).masked_fill_(behind, -torch.inf)
            self.hidden = hidden[:, None].repeat_interleave(weights.shape.key_heads, 0)

    def prefill(self) -> Float[Tensor, "R V"]:
        """Runs every prompt once: packed without padding through the layers, side by side in the attention."""
        shape = self.weights.shape
        packed = torch.tensor([token for prompt in self.prompts for token in prompt], device=self.device)  # (N,)
        columns = torch.arange(int(self.lengths.max()), device=self.device)
        ends = self.lengths.cumsum(0)  # (P,)
        real = columns < self.lengths[:, None]  # (P, L)
        places = (ends - self.lengths)[:, None] + columns.minimum(self.lengths[:, None] - 1)  # (P, L) in 0..N-1
        positions = columns.expand(len(ends), -1)[real]  # (N,)

        def attend(heads: Tensor) -> Tensor:
            query, key, value = heads[places].transpose(1, 2).split([shape.heads, shape.key_heads, shape.key_heads], 1)
            self.caches.append(GroupCache(torch.stack([key, value]), self.grid[1], self.steps))
            # What is padded stands behind all real tokens, so that causality hides it.
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)  # (P, H, L, D)
            return out.transpose(1, 2).flatten(2)[real]

        x = self.weights.embedding[packed]
        for layer in self.weights.layers:
            x = _run_layer(layer, shape, x, self.rotations[positions], attend)
        return self._logits(x[ends - 1]).repeat_interleave(self.grid[1], 0)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next."""
        x, rotations = self.weights.embedding[tokens], self.rotations[self.positions]
        for layer, cache in zip(self.weights.layers, self.caches, strict=True):
            x = _run_layer(layer, self.weights.shape, x, rotations, self._attention(cache))
        self.positions = self.positions + 1
        return self._logits(x)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drops the other rows; the grid becomes as wide as the largest group that is left."""
        old, before = self.cells[rows], self.grid[1]
        groups, label, sizes = torch.unique_consecutive(old // before, return_inverse=True, return_counts=True)
        widest = int(sizes.max())
        rank = torch.arange(len(rows), device=self.device) - (sizes.cumsum(0) - sizes)[label]  # place within its group
        self.grid, self.cells, self.positions = (len(groups), widest), label * widest + rank, self.positions[rows]
        contents = (groups * before).repeat_interleave(widest)  # an empty cell holds the group's first
        contents[self.cells] = old
        for cache in self.caches:
            cache.keep(groups, contents.view(self.grid))
        if self.hidden is not None:
            self.hidden = self.hidden.unflatten(0, (-1, self.weights.shape.key_heads))[groups].flatten(0, 1)
        self.row_of_cell = None
        if len(rows) < len(contents):
            self.row_of_cell = torch.zeros_like(contents)
            self.row_of_cell[self.cells] = torch.arange(len(rows), device=self.device)

    def _attention(self, cache: GroupCache) -> Attention:
        """Attention from one new position a row, over the grid."""

        def attend(heads: Tensor) -> Tensor:
            if self.row_of_cell is None:
                return cache.attend(heads.view(*self.grid, *heads.shape[1:]), self.hidden).view(len(heads), -1)
            cells = heads[self.row_of_cell]
            return cache.attend(cells.view(*self.grid, *heads.shape[1:]), self.hidden).flatten(0, 1)[self.cells]

        return attend

    def _logits(self, x: Float[Tensor, "R hidden"]) -> Float[Tensor, "R V"]:
        normed = _norm(x, self.weights.norm, self.weights.shape.epsilon)
        return apply_linear(normed, self.weights.head, None)


def _run_layer(
    layer: LayerWeights,
    shape: Shape,
    x: Float[Tensor, "N hidden"],
    rotations: Complex[Tensor, "N 1 half"],
    attend: Attention,
) -> Float[Tensor, "N hidden"]:
    """One layer: adds attention and feed-forward to `x`, in place."""
    normed = _norm(x, layer.attention_norm, shape.epsilon)
    heads = apply_linear(normed, layer.qkv, layer.qkv_bias).view(len(x), -1, shape.width)  # (N, H + 2K, D)
    if layer.head_norms is not None:
        query, key, _ = heads.split([shape.heads, shape.key_heads, shape.key_heads], 1)
        for part, weight in zip((query, key), layer.head_norms, strict=True):
            part.copy_(_norm(part, weight, shape.epsilon))
    rotate(heads[:, : shape.heads + shape.key_heads], rotations)
    x = x.add_(apply_linear(attend(heads), layer.out, layer.out_bias))
    normed = _norm(x, layer.mlp_norm, shape.epsilon)
    gate_up = apply_linear(normed, layer.gate_up, layer.gate_up_bias)
    middle = gate_up.shape[1] // 2
    gated = silu(gate_up[:, :middle]).mul_(gate_up[:, middle:])
    return x.add_(apply_linear(gated, layer.down, layer.down_bias))


def _norm(x: Float[Tensor, "... K"], weight: Float[Tensor, " K"], epsilon: float) -> Float[Tensor, "... K"]:
    """Root mean square norm; in half precision rounded before the weight is multiplied in, as transformers rounds it."""
    if x.dtype == torch.float32:
        return rms_norm(x, weight.shape, weight, epsilon)
    return rms_norm(x, weight.shape, None, epsilon).mul_(weight)
