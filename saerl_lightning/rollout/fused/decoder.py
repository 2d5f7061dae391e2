"""FusedDecoder: decodes Llama, Qwen2, Qwen3 and similar models with about a dozen operations a layer.

It computes the same as transformers; a few tokens are compared before its first use. It has no gradients, no dropout
and no autocast, and refuses sliding windows and rotary embeddings that depend on the text's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from saerl_lightning.rollout.decoding import Decoder
from saerl_lightning.rollout.fused.weights import (
    FusedWeights,
    LayerWeights,
    NotLlamaLike,
    Shape,
    apply_linear,
    fuse,
    rotate,
    rotation_table,
)
from saerl_lightning.rollout.policy_decoder import PolicyDecoder, RoomyLayer, make_cache

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class GroupCache:
    """Keys and values of one layer: of P prompts, and of the G completions of each.

    Args:
        prompt: Keys (first index 0) and values (first index 1) of the prompts, padded on the right.
        group_size: Number of completions of each prompt (G).
        steps: Largest number of positions of a completion (M).
    """

    def __init__(self, prompt: Float[Tensor, "2 P K L D"], group_size: int, steps: int) -> None:
        _, prompts, shared, _, width = prompt.shape
        self.prompt = prompt
        self.own = prompt.new_empty(2, prompts, shared, group_size, steps, width)
        self.filled = 0  # positions of the completions
        self._cut_views()

    def _cut_views(self) -> None:
        """Stores the views that the products need; making them at every step would cost a tenth of its time."""
        self.prompt_keys = self.prompt[0].flatten(0, 1).transpose(1, 2)  # (PK, D, L)
        self.prompt_values = self.prompt[1].flatten(0, 1)  # (PK, L, D)
        self.own_keys = self.own[0].flatten(0, 2).transpose(1, 2)  # (PKG, D, M)
        self.own_values = self.own[1].flatten(0, 2)  # (PKG, M, D)

    def attend(
        self, heads: Float[Tensor, "P G heads D"], hidden: Float[Tensor, "PK 1 L"] | None
    ) -> Float[Tensor, "P G width"]:
        """Appends one position to every completion and computes its attention over prompt and completion.

        Args:
            heads: Heads of the new position: H queries, K keys, K values. Queries that share a key are neighbours.
            hidden: Additive mask: minus infinity at the padding of each prompt, else 0; null if there is no padding.

        Returns:
            The heads' outputs side by side, width = H D.
        """
        (prompts, group, count, width), shared = heads.shape, self.own.shape[2]
        query = heads[:, :, : count - 2 * shared]
        new = heads[:, :, count - 2 * shared :].view(prompts, group, 2, shared, width)
        self.own[:, :, :, :, self.filled] = new.permute(2, 0, 3, 1, 4)
        self.filled += 1
        folded = query.view(prompts, group, shared, -1, width).transpose(1, 2)  # (P, K, G, H/K, D)
        grouped = folded.reshape(prompts * shared, -1, width)  # all queries of a prompt's key: (PK, GH/K, D)
        out = self._products(grouped, hidden)  # (PK, GH/K, D)
        return out.view(prompts, shared, group, -1).transpose(1, 2).reshape(prompts, group, -1)

    def _products(
        self, grouped: Float[Tensor, "PK Gn D"], hidden: Float[Tensor, "PK 1 L"] | None
    ) -> Float[Tensor, "PK Gn D"]:
        """Computes one softmax over the scores of prompt and completion together, times the values of both."""
        width, length = grouped.shape[-1], self.prompt_values.shape[1]
        rows = grouped.view(len(self.own_keys), -1, width)  # (PKG, n, D)
        # With beta = 0 the first argument is not read; it only has to have a shape that fits.
        to_prompt = torch.baddbmm(
            self.prompt_values[:, :1, :1] if hidden is None else hidden,
            grouped,
            self.prompt_keys,
            beta=0 if hidden is None else 1,
            alpha=width**-0.5,
        )
        to_own = torch.baddbmm(
            self.own_values[:, :1, :1], rows, self.own_keys[:, :, : self.filled], beta=0, alpha=width**-0.5
        )
        scores = torch.cat([to_prompt, to_own.view(len(grouped), -1, self.filled)], dim=-1)
        weights = scores.softmax(-1)  # (PK, Gn, L + t)
        out = torch.bmm(weights[:, :, :length], self.prompt_values)
        own_weights = weights[:, :, length:].view(len(rows), -1, self.filled)
        out.view(rows.shape).baddbmm_(own_weights, self.own_values[:, : self.filled])
        return out

    def keep(self, prompts: Int[Tensor, " p"], cells: Int[Tensor, "p g"]) -> None:
        """Keeps some prompts; row p of the new grid holds the completions of the present cells `cells[p]`."""
        _, _, shared, group, steps, width = self.own.shape
        filled = self.own.transpose(2, 3)[:, cells // group, cells % group, :, : self.filled]  # (2, p, g, K, t, D)
        self.prompt = self.prompt[:, prompts]
        self.own = self.own.new_empty(2, len(cells), shared, cells.shape[1], steps, width)
        self.own[:, :, :, :, : self.filled] = filled.transpose(2, 3)
        self._cut_views()


# H queries, K keys and K values of one layer (N, H + 2K, D) -> the heads' outputs side by side (N, H D).
Attention = Callable[[Tensor], Tensor]


class FusedDecoder(Decoder):
    """Decodes P prompts with G completions each, using fused weights.

    Args:
        model: Policy, of which rotary embedding, device and dtype are read, but no weights.
        weights: Fused weights of the policy.
        prompts: Token ids of P prompts.
        group_size: Number of completions of each prompt.
        steps: Largest number of tokens of a completion.
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
        # Rows are cells of a (P, G) grid. Once rows are removed, some cells are empty; they compute on copied values.
        self.grid = (len(prompts), group_size)
        self.cells = torch.arange(len(prompts) * group_size, device=self.device)  # (R,): the cell of each row
        self.row_of_cell: Tensor | None = None  # (P G,); None while row i is cell i
        self.positions = lengths.repeat_interleave(group_size)  # (R,): position of the next token of each row
        self.hidden = None  # (P K, 1, L): minus infinity behind a prompt shorter than the longest
        if len(set(map(len, prompts))) > 1:
            behind = torch.arange(max(map(len, prompts)), device=self.device) >= lengths[:, None]
            hidden = torch.zeros(behind.shape, dtype=model.dtype, device=self.device).masked_fill_(behind, -torch.inf)
            self.hidden = hidden[:, None].repeat_interleave(weights.shape.key_heads, 0)

    def prefill(self) -> Float[Tensor, "R V"]:
        """Computes every prompt once: packed without padding in the layers, padded side by side in the attention."""
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
            # Padding stands behind all real tokens, so the causal mask hides it.
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)  # (P, H, L, D)
            return out.transpose(1, 2).flatten(2)[real]

        x = self.weights.embedding[packed]
        for layer in self.weights.layers:
            x = _run_layer(layer, shape, x, self.rotations[positions], attend)
        return self._logits(x[ends - 1]).repeat_interleave(self.grid[1], 0)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next token."""
        x, rotations = self.weights.embedding[tokens], self.rotations[self.positions]
        for layer, cache in zip(self.weights.layers, self.caches, strict=True):
            x = _run_layer(layer, self.weights.shape, x, rotations, self._attention(cache))
        self.positions = self.positions + 1
        return self._logits(x)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keeps only the given rows; the grid becomes as wide as the largest group that is left."""
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
        """Builds the attention from one new position a row, over the grid of cells."""

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
    """Adds one layer's attention and feed-forward outputs to `x`, in place."""
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
    """Root mean square norm; in half precision it is rounded before the weight is applied, as in transformers."""
    if x.dtype == torch.float32:
        return rms_norm(x, weight.shape, weight, epsilon)
    return rms_norm(x, weight.shape, None, epsilon).mul_(weight)


# Rotary embeddings that do not depend on the text's length. `check_logits` is too short to find those that do.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
# Largest allowed difference of two logits, as a share of the largest logit: in float32, and with rounded products.
EXACT, ROUNDED = 1e-4, 5e-2


def fuse_weights(
    model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]], compare_logits: bool
) -> FusedWeights:
    """Fuses the weights of a Llama-like model, and compares its logits with the model's own.

    Args:
        model: Policy in evaluation mode, with autocast off.
        named_tensors: Full state dict of the policy, with adapters merged.
        compare_logits: Whether logits are compared; needed the first time only.

    Raises:
        NotLlamaLike: naming the property that a Llama-like model does not have.
    """
    try:
        check_config(model.config)
        weights = fuse(named_tensors, Shape.of(model.config), model.dtype)
        if compare_logits:
            check_logits(model, weights)
    # Raised for weights that are sharded, have other shapes, or do not fit into memory.
    except (AttributeError, RuntimeError, ValueError) as error:
        raise NotLlamaLike(f"fusing its weights failed: {error}") from error
    return weights


def check_config(config: PretrainedConfig) -> None:
    """Refuses models whose attention or rotary embedding depends on the text's length.

    `check_logits` can't find these, because it decodes only a few tokens.

    Raises:
        NotLlamaLike: naming the property.
    """
    layers = make_cache(config, 1).layers
    if not layers or any(type(layer) is not RoomyLayer for layer in layers):
        raise NotLlamaLike("some of its layers do not attend to the whole text")
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in FIXED_ROTARY:
        raise NotLlamaLike(f"its rotary embedding, {rotary}, changes with the length of the text")


def check_logits(model: PreTrainedModel, weights: FusedWeights) -> None:
    """Checks that the fused decoder gives the policy's own logits on a few tokens.

    There are two prompts of different length with three rows each; some rows are removed after the first step.

    Args:
        model: Policy in evaluation mode.
        weights: Fused weights of the policy.

    Raises:
        NotLlamaLike: if the logits differ by more than rounding.
    """
    vocabulary = len(weights.embedding)
    prompts = [[(7919 * i + 31 * p) % vocabulary for i in range(1, 7 - 2 * p)] for p in range(2)]
    own = _logits(PolicyDecoder(model, prompts, 3, 3), vocabulary)
    fused = _logits(FusedDecoder(model, weights, prompts, 3, 3), vocabulary)
    difference = float((own - fused).abs().max() / own.abs().max())
    exact = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    # `not <=` also refuses NaN.
    if not difference <= (EXACT if exact else ROUNDED):
        raise NotLlamaLike(f"its logits differ from those with fused weights, by {difference:.1g} of the largest")


def _logits(decoder: Decoder, vocabulary: int) -> Tensor:
    """Computes the logits of the prefill, of one step, and of one step after rows were removed."""
    logits = [decoder.prefill()]
    rows = torch.arange(len(logits[0]), device=logits[0].device)
    logits.append(decoder.step((rows * 104729 + 1) % vocabulary))
    kept = rows[torch.tensor([0, 2, 5], device=rows.device)]
    decoder.keep(kept)
    logits.append(decoder.step((kept * 15485863 + 2) % vocabulary))
    return torch.cat(logits).float()
