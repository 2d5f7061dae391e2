"""PolicyDecoder: decodes by the policy's own forward, so that it fits every causal language model of transformers.

At small sizes most of its time is transformers' Python between the products; `fused.decoder` leaves that out.
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
    """One layer's keys and values in buffers of fixed capacity; `keys` and `values` are views of the filled part.

    Args:
        capacity: most positions the layer will hold: prompt plus completion.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None  # 2 x (rows, heads, capacity, width)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new columns behind the filled ones.

        The first call, the prefill, keeps the tensors as they are: `reorder_cache` gives them room when each
        prompt becomes a group.
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
        """Makes row i a copy of the present row `beam_idx[i]`; rows may repeat or be left out."""
        assert self.keys is not None and self.values is not None
        filled = self.keys.shape[2]
        self.buffers = self._roomy_copy(self.keys, beam_idx), self._roomy_copy(self.values, beam_idx)
        self.keys, self.values = (buffer[:, :, :filled] for buffer in self.buffers)

    def _roomy_copy(self, filled: Tensor, rows: Tensor) -> Tensor:
        """A buffer of full capacity whose first columns are those of the given rows."""
        buffer = filled.new_empty(len(rows), filled.shape[1], self.capacity, filled.shape[3])
        buffer[:, :, : filled.shape[2]] = filled[rows]
        return buffer


def make_cache(config: PretrainedConfig, capacity: int) -> DynamicCache:
    """The cache transformers gives this model, with room for `capacity` positions where a layer keeps them all.

    Layers of other kinds (sliding window, linear attention) stay what they are; all of them reorder rows alike.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PolicyDecoder(Decoder):
    """Any causal language model of transformers, through its own forward.

    Args:
        model: the policy, in evaluation mode.
        prompts: P lists of token ids.
        group_size: rows a prompt becomes.
        steps: most tokens a completion gets.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], group_size: int, steps: int) -> None:
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)  # (P,)
        self.model = model
        self.prompts = prompts
        self.groups = torch.arange(len(prompts), device=model.device).repeat_interleave(group_size)  # (R,)
        self.width = max(map(len, prompts))
        self.positions = lengths  # (P,), after `prefill` (R,): position of the next token of each row
        self.cache = make_cache(model.config, self.width + steps)
        # Left padding is hidden by a mask; where there is none, attention is faster without.
        slots = torch.arange(self.width + steps, device=model.device)
        self.visible = slots >= (self.width - lengths)[:, None] if len(set(map(len, prompts))) > 1 else None

    def prefill(self) -> Float[Tensor, "R V"]:
        """Runs every prompt once, then repeats it G times in the cache. Returns the logits of the first token."""
        padded = torch.tensor([[0] * (self.width - len(p)) + list(p) for p in self.prompts], device=self.model.device)
        columns = torch.arange(self.width, device=self.model.device)
        positions = (columns - (self.width - self.positions)[:, None]).clamp_min(0)  # (P, width)
        logits = self._forward(padded, positions)
        self.keep(self.groups)
        return logits[self.groups]

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next."""
        logits = self._forward(tokens[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Int[Tensor, " R"]) -> None:
        """Makes row i what row `rows[i]` was."""
        self.cache.reorder_cache(cast("torch.LongTensor", rows))
        self.positions = self.positions[rows]
        self.visible = None if self.visible is None else self.visible[rows]

    def _forward(self, tokens: Int[Tensor, "R t"], positions: Int[Tensor, "R t"]) -> Float[Tensor, "R V"]:
        """The model's logits after the last of the given tokens."""
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
    """Attends from one position a row: query (R, H, 1, D), key and value (R, K, L, D), H a multiple of K."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    if length > 1 or heads == shared or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    folded = query.reshape(rows, shared, heads // shared, width)  # heads of one key head are neighbours
    out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(rows, 1, heads, value.shape[-1]), None


# transformers keeps attention functions in a registry; a model finds its own by the name in its configuration.
AttentionInterface.register(NAME, folded_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def folded(model: PreTrainedModel) -> Iterator[None]:
    """Lets an `sdpa` model use `folded_attention` inside the block."""
    if model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
