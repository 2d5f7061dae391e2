"""Attention over a packed trie: every node sees the nodes above it and itself, in an otherwise unchanged HF model.

Query heads that share a key head become the rows of one product, so keys and values are never repeated. It knows plain
softmax attention only; whether a model is content with that, `forward.py` finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from saerl_lightning.attention import attends_by
from saerl_lightning.signals.trie import Trie, spans

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "saerl_tree"


@dataclass(frozen=True)
class TreeSpan:
    """A run of c nodes with p nodes above it, ready for attention."""

    nodes: slice
    path: Int[Tensor, " p"]
    bias: Float[
        Tensor, "1 1 rows keys"
    ]  # g*c rows, p+c keys: 0 where a node is seen, else -inf; g query heads a key head


def tree_spans(trie: Trie, decoder: PreTrainedModel, width: int = 64) -> list[TreeSpan]:
    """Lays a trie out for a decoder's attention, in runs of `width` nodes."""
    heads, shared = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
    laid_out = []
    for span in spans(trie, width):
        seen = torch.from_numpy(span.mask)
        bias = torch.zeros(seen.shape, dtype=decoder.dtype).masked_fill_(~seen, float("-inf"))
        bias = bias.repeat(heads // shared, 1)[None, None].to(decoder.device)
        path = torch.from_numpy(span.path).to(decoder.device)
        laid_out.append(TreeSpan(slice(span.start, span.stop), path, bias))
    return laid_out


def tree_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 H n D"],
    key: Float[Tensor, "1 K n D"],
    value: Float[Tensor, "1 K n E"],
    attention_mask: None,
    scaling: float | None = None,
    tree: Sequence[TreeSpan] = (),
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 n H E"], None]:
    """Attends from every node to what it sees; the signature is that of transformers' attention functions."""
    _, heads, count, _ = query.shape
    shared, width = value.shape[1], value.shape[-1]
    out = query.new_empty(1, count, heads, width)
    for span in tree:
        rows = query[:, :, span.nodes].reshape(1, shared, -1, query.shape[-1])  # (1, K, g*c, D)
        keys, values = (torch.cat([x[:, :, span.path], x[:, :, span.nodes]], 2) for x in (key, value))
        attended = scaled_dot_product_attention(rows, keys, values, attn_mask=span.bias, scale=scaling)
        out[:, span.nodes] = attended.reshape(1, heads, -1, width).transpose(1, 2)
    return out, None


def attends_trees(decoder: PreTrainedModel) -> AbstractContextManager[None]:
    """Lets a decoder use `tree_attention` inside the block; it needs `tree=` there.

    Raises:
        NotImplementedError: on entering, if the decoder's attention can't be replaced.
    """
    return attends_by(decoder, NAME, tree_attention)
