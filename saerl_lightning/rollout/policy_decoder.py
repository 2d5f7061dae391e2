"""PolicyDecoder: decodes any causal language model of transformers by its own forward.

In small models, most of its time is spent in transformers' Python code between the matrix products; `fused.decoder`
avoids that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from saerl_lightning.rollout.decoding import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, in buffers of fixed size; `keys` and `values` are views of the filled part.

    Args:
        capacity: Largest number of positions in the layer: prompt plus completion.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None  # 2 x (rows, heads, capacity, width)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new columns after the filled ones.

        The first call, the prefill, stores the tensors as they are. `reorder_cache` moves them into larger buffers when
        each prompt becomes a group.
        """
        if self.keys is None or self.values is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return self.keys, self.values
        if self.buffers is None:
            self.reorder_cache(torch.arange(len(self.keys), device=self.keys.device))
        assert self.buffers is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i a copy of the present row `beam_idx[i]`; rows may be repeated or left out."""
        assert self.keys is not None and self.values is not None
        filled = self.keys.shape[2]
        self.buffers = self._roomy_copy(self.keys, beam_idx), self._roomy_copy(self.values, beam_idx)
        self.keys, self.values = (buffer[:, :, :filled] for buffer in self.buffers)

    def _roomy_copy(self, filled: Tensor, rows: Tensor) -> Tensor:
        """Makes a buffer of full size whose first columns are those of the given rows."""
        buffer = filled.new_empty(len(rows), filled.shape[1], self.capacity, filled.shape[3])
        buffer[:, :, : filled.shape[2]] = filled[rows]
        return buffer


def make_cache(config: PretrainedConfig, capacity: int) -> DynamicCache:
    """Makes the model's cache, with buffers of `capacity` positions for layers that keep all positions.

    Layers of other kinds (sliding window, linear attention) stay as they are. All kinds reorder rows in the same way.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PolicyDecoder(Decoder):
    """Decodes with the model's own forward; works for every causal language model of transformers.

    Args:
        model: Policy in evaluation mode.
        prompts: Token ids of P prompts.
        group_size: Number of completions of each prompt.
        steps: Largest number of tokens of a completion.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], group_size: int, steps: int) -> None:
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)  # (P,)
        self.model = model
        self.prompts = prompts
        self.groups = torch.arange(len(prompts), device=model.device).repeat_interleave(group_size)  # (R,)
        self.width = max(map(len, prompts))
        self.positions = lengths  # (P,), after `prefill` (R,): position of the next token of each row
        self.cache = make_cache(model.config, self.width + steps)
        # A mask hides left padding. Without padding no mask is made, because attention is faster without one.
        slots = torch.arange(self.width + steps, device=model.device)
        self.visible = slots >= (self.width - lengths)[:, None] if len(set(map(len, prompts))) > 1 else None

    def prefill(self) -> Float[Tensor, "R V"]:
        """Computes every prompt once, copies its cache G times, and returns the logits of the first token."""
        padded = torch.tensor([[0] * (self.width - len(p)) + list(p) for p in self.prompts], device=self.model.device)
        columns = torch.arange(self.width, device=self.model.device)
        positions = (columns - (self.width - self.positions)[:, None]).clamp_min(0)  # (P, width)
        logits = self._forward(padded, positions)
        self.keep(self.groups)
        return logits[self.groups]

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next token."""
        logits = self._forward(tokens[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Int[Tensor, " R"]) -> None:
        """Keeps only the given rows: row i becomes the present row `rows[i]`."""
        self.cache.reorder_cache(cast("torch.LongTensor", rows))
        self.positions = self.positions[rows]
        self.visible = None if self.visible is None else self.visible[rows]

    def _forward(self, tokens: Int[Tensor, "R t"], positions: Int[Tensor, "R t"]) -> Float[Tensor, "R V"]:
        """Computes the model's logits after the last of the given tokens."""
        filled = self.cache.get_seq_length() + tokens.shape[1]
        out = self.model(
            input_ids=tokens,
            attention_mask=None if self.visible is None else self.visible[:, :filled],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


NAME = "saerl_folded"


def folded_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Computes attention from one position a row: query (R, H, 1, D), key and value (R, K, L, D), H = n K."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    if length > 1 or heads == shared or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    folded = query.reshape(rows, shared, heads // shared, width)  # heads of one key head are neighbours
    out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(rows, 1, heads, value.shape[-1]), None


# transformers has a registry of attention functions; a model's configuration names the one it uses.
AttentionInterface.register(NAME, folded_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def folded(model: PreTrainedModel) -> Iterator[None]:
    """Makes an `sdpa` model use `folded_attention` inside the block."""
    if model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
