"""Packs token lists into a trie, so that a prefix shared by many prompts is computed once.

Nodes are in preorder (each node before its children, each subtree contiguous). This makes attention cheap: a span of
consecutive nodes sees only the path to its first node, and nodes of the span. n nodes, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from saerl_lightning.hf_attention import attends_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Tokens = list[int]


@dataclass(frozen=True)
class Trie:
    """Distinct prefixes of some token lists, one node per prefix, in preorder."""

    tokens: Int[np.ndarray, " n"]
    depth: Int[np.ndarray, " n"]  # position of the token in every prompt that shares it, from 0
    parent: Int[np.ndarray, " n"]  # -1 for the first token of a prompt
    paths: tuple[Int[np.ndarray, " _"], ...]  # P, nodes of each prompt's tokens, in order

    def __len__(self) -> int:
        return len(self.tokens)

    def ancestors(self, node: int) -> Int[np.ndarray, " depth"]:
        """Returns the nodes above a node, from the first token down, without the node itself."""
        path = np.empty(self.depth[node], dtype=np.int64)
        for level in range(len(path) - 1, -1, -1):
            node = int(self.parent[node])
            path[level] = node
        return path


@dataclass(frozen=True)
class Span:
    """Consecutive nodes, and which nodes they attend to: the path above the first one, and nodes of the span."""

    start: int
    stop: int
    path: Int[np.ndarray, " p"]
    # c = stop - start rows; true where a node attends to a node of the path (first p columns) or of the span
    mask: Bool[np.ndarray, "c p+c"]


def build(prompts: Sequence[Tokens]) -> Trie:
    """Packs token lists into a trie.

    Args:
        prompts: Token ids of P prompts. Lists may be equal, prefixes of each other, or empty.

    Returns:
        A trie with one node per distinct prefix; `paths` is in the order of `prompts`.
    """
    tokens: list[int] = []
    depth: list[int] = []
    parent: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(prompts)
    path: list[int] = []  # nodes of the previous prompt
    before: Tokens = []
    for index in by_prefix(prompts):
        prompt = prompts[index]
        shared = common_prefix(before, prompt)
        path = path[:shared]
        for token in prompt[shared:]:
            parent.append(path[-1] if path else -1)
            depth.append(len(path))
            path.append(len(tokens))
            tokens.append(token)
        paths[index] = np.array(path, dtype=np.int64)
        before = prompt
    columns = [np.array(column, dtype=np.int64) for column in (tokens, depth, parent)]
    return Trie(columns[0], columns[1], columns[2], tuple(paths))


def by_prefix(prompts: Sequence[Tokens]) -> list[int]:
    """Sorts prompts lexicographically, so that prompts with a common prefix are neighbours. Returns their positions."""
    return sorted(range(len(prompts)), key=lambda index: prompts[index])


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Counts the tokens that two lists share at their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def batches(prompts: Sequence[Tokens], budget: int) -> list[list[int]]:
    """Splits prompts into tries of at most `budget` nodes; prompts with a common prefix stay together where possible.

    Args:
        prompts: Token ids of P prompts.
        budget: Largest number of nodes of a trie. A longer prompt gets a trie of its own.

    Returns:
        Positions in `prompts`, each exactly once.
    """
    parts: list[list[int]] = []
    nodes, before = 0, []
    for index in by_prefix(prompts):
        prompt = prompts[index]
        more = len(prompt) - common_prefix(before, prompt)
        if not parts or nodes + more > budget:
            parts.append([])
            nodes, more = 0, len(prompt)
        parts[-1].append(index)
        nodes, before = nodes + more, prompt
    return parts


def spans(trie: Trie, width: int) -> list[Span]:
    """Cuts a trie into spans of `width` nodes, with the mask of each.

    Nodes are in preorder, so every earlier node that a span attends to is above the span's first node. Attention thus
    needs width * (width + depth) products per span instead of all pairs of nodes.
    """
    return [_span(trie, start, min(start + width, len(trie))) for start in range(0, len(trie), width)]


def _span(trie: Trie, start: int, stop: int) -> Span:
    path = trie.ancestors(start)
    mask = np.zeros((stop - start, len(path) + stop - start), dtype=bool)
    for row, node in enumerate(range(start, stop)):
        parent = trie.parent[node]
        if parent >= start:
            mask[row] = mask[parent - start]
        else:
            mask[row, : trie.depth[node]] = True  # the parent and all nodes above it are on the path
        mask[row, len(path) + row] = True
    return Span(start, stop, path, mask)


NAME = "saerl_tree"


@dataclass(frozen=True)
class TreeSpan:
    """A span of c nodes with p nodes above it, as tensors for attention."""

    nodes: slice
    path: Int[Tensor, " p"]
    # g * c rows (g query heads per key head), p + c keys; 0 where a node is attended to, else -inf
    bias: Float[Tensor, "1 1 rows keys"]


def tree_spans(trie: Trie, decoder: PreTrainedModel, width: int = 64) -> list[TreeSpan]:
    """Converts a trie into tensors for a decoder's attention, in spans of `width` nodes."""
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
    """Computes attention along the trie, with the signature of transformers' attention functions."""
    _, heads, count, _ = query.shape
    shared, width = value.shape[1], value.shape[-1]
    out = query.new_empty(1, count, heads, width)
    for span in tree:
        # The query heads of one key head become further rows, so keys and values are not repeated (grouped-query
        # attention).
        rows = query[:, :, span.nodes].reshape(1, shared, -1, query.shape[-1])  # (1, K, g*c, D)
        keys, values = (torch.cat([x[:, :, span.path], x[:, :, span.nodes]], 2) for x in (key, value))
        attended = scaled_dot_product_attention(rows, keys, values, attn_mask=span.bias, scale=scaling)
        out[:, span.nodes] = attended.reshape(1, heads, -1, width).transpose(1, 2)
    return out, None


def attends_trees(decoder: PreTrainedModel) -> AbstractContextManager[None]:
    """Makes a decoder use `tree_attention` inside the block. Its calls must pass `tree=`.

    Raises:
        NotImplementedError: on entering the block, if the decoder's attention can't be replaced.
    """
    return attends_by(decoder, NAME, tree_attention)
