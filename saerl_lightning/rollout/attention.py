"""Attention for decoding: the query heads that share a key head become the rows of one small product.

Where prompts differ in length, transformers' own path repeats keys and values for every query head at every step; on a
CPU that copying costs more than the attention itself. Prefill, and models that don't use `sdpa`, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
