"""Token lists packed into a trie, so that a prefix which many prompts share is computed once.

Pure layout, no model and no attention. Nodes stand in preorder (a node before its children, a subtree without gaps),
which makes attention cheap: what a run of neighbouring nodes may see is the path to its first node and the run itself.
n nodes, P prompts.
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
    """Distinct prefixes of some token lists, one node each, in preorder."""

    tokens: Int[np.ndarray, " n"]
    depth: Int[np.ndarray, " n"]  # the token's position in every prompt that shares it, from 0
    parent: Int[np.ndarray, " n"]  # -1 for a first token
    paths: tuple[Int[np.ndarray, " _"], ...]  # P, the nodes of each prompt's tokens in order

    def __len__(self) -> int:
        return len(self.tokens)

    def ancestors(self, node: int) -> Int[np.ndarray, " depth"]:
        """The nodes above a node, from the first token down; the node itself is not among them."""
        path = np.empty(self.depth[node], dtype=np.int64)
        for level in range(len(path) - 1, -1, -1):
            node = int(self.parent[node])
            path[level] = node
        return path


@dataclass(frozen=True)
class Span:
    """Neighbouring nodes with all that they may see: the path above the first of them, and each other."""

    start: int
    stop: int
    path: Int[np.ndarray, " p"]
    mask: Bool[
        np.ndarray, "c p+c"
    ]  # c = stop - start; true where a node (row) sees a node of the path, then of the span


def build(prompts: Sequence[Tokens]) -> Trie:
    """Packs token lists into a trie.

    Args:
        prompts: P lists of token ids; they may be equal, prefixes of each other, or empty.

    Returns:
        As many nodes as the lists have distinct prefixes; `paths` in the order of `prompts`.
    """
    tokens: list[int] = []
    depth: list[int] = []
    parent: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(prompts)
    path: list[int] = []  # nodes of the list before
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
    """Order in which lists that share a prefix are neighbours, and shared work is next to come: lexicographic."""
    return sorted(range(len(prompts)), key=lambda index: prompts[index])


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of tokens that two lists share at their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def batches(prompts: Sequence[Tokens], budget: int) -> list[list[int]]:
    """Splits prompts into tries of at most `budget` nodes, neighbours by prefix together.

    Args:
        prompts: P lists of token ids.
        budget: nodes of a trie; a prompt that is longer gets a trie of its own.

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
    """Cuts a trie into runs of `width` nodes, with what each may see.

    A node that a run sees and that stands before it is above the run's first node, because nodes stand in preorder. So
    attention needs width * (width + depth) products a run, instead of all pairs of nodes.
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
            mask[row, : trie.depth[node]] = True  # the parent is on the path, and so is all above it
        mask[row, len(path) + row] = True
    return Span(start, stop, path, mask)


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
