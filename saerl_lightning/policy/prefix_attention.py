"""Attention over packed groups in an unchanged HF decoder: each completion attends to its prompt and to itself.

It computes plain softmax attention with PyTorch's own kernels, on any device. Query heads that share a key head become
rows of one product, so keys are never repeated. Long completions are computed in blocks, so masks and work stay below
the square of their length. Models with windows, soft caps, sinks, biases or dropout are refused.

Letters: n packed tokens, H query heads, K key heads, g completions, D width of queries and keys, E width of values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from saerl_lightning.hf_attention import attends_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "saerl_packed"
# Query positions in one kernel call. Larger blocks compute more masked scores; smaller ones need more calls.
BLOCK, CPU_BLOCK = 512, 128
# The attribute in which transformers' modules keep the function that recomputes them.
CHECKPOINT = "_gradient_checkpointing_func"
# Arguments by which transformers' models ask for more than a plain softmax.
BEYOND_SOFTMAX = ("softcap", "s_aux", "sinks", "position_bias", "attention_bias", "alibi")


@dataclass(frozen=True)
class PackedGroup:
    """Position and lengths of one group in a packed row: the prompt, then one completion after the other."""

    start: int
    prompt: int  # tokens of the prompt
    lengths: tuple[int, ...]  # tokens of each completion


class PackedLayout:
    """Index tensors and masks of a packed row, for its forward and backward pass.

    It is a plain class because it is passed as a keyword argument of modules, where wrappers such as FSDP rebuild
    dataclasses.
    """

    def __init__(self, groups: Sequence[PackedGroup], device: torch.device) -> None:
        block = CPU_BLOCK if device.type == "cpu" else BLOCK
        self.groups = [_Rows(group, block, device) for group in groups]
        self.sizes = [tokens for group in groups for tokens in (group.prompt, sum(group.lengths))]
        self.longest = max(group.prompt + max(group.lengths) for group in groups)  # tokens of a sequence
        self.order = _order(self.groups, device)
        self._masks: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    def mask(self, rows: int, keys: int, fold: int, like: Tensor) -> Float[Tensor, "_ keys"]:
        """Causal mask that is added to scores: 0 up to the diagonal that ends in the last key, else -inf."""
        # Each row stands `fold` times: the query heads of one key head are neighbouring rows.
        name = (rows, keys, fold, like.dtype)
        if name not in self._masks:
            hidden = torch.ones(rows, keys, dtype=torch.bool, device=like.device).triu_(keys - rows + 1)
            mask = torch.zeros(rows, keys, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            self._masks[name] = mask.repeat_interleave(fold, 0)
        return self._masks[name]


@dataclass(frozen=True)
class _Block:
    """A block of positions, start to stop, of the first `count` completions: those that are long enough."""

    start: int
    stop: int
    count: int


class _Rows:
    """The completions of a group as rows of equal length, longest first."""

    def __init__(self, group: PackedGroup, block: int, device: torch.device) -> None:
        lengths = sorted(group.lengths, reverse=True)
        self.group = group
        self.places = _places(group)  # (g, L), counted from the first completion's first token; -1 for padding
        # Completions of equal length are a plain view of the packed row: no index is needed.
        self.gathered = self.places.clamp(min=0).flatten().to(device) if lengths[0] > lengths[-1] else None
        self.prompt_blocks = [_Block(s, min(s + block, group.prompt), 1) for s in range(0, group.prompt, block)]
        starts = range(0, lengths[0], block)
        self.blocks = [_Block(s, min(s + block, lengths[0]), sum(n > s for n in lengths)) for s in starts]

    def computed(self) -> Int[Tensor, " _"]:
        """Index in n of every result, in the order of the blocks; -1 for padding."""
        own = self.group.start + self.group.prompt
        parts = [self.places[: b.count, b.start : b.stop].flatten() for b in self.blocks]
        return torch.cat([torch.arange(self.group.start, own), *(torch.where(p < 0, p, p + own) for p in parts)])


def _places(group: PackedGroup) -> Int[Tensor, "g L"]:
    starts = [0, *accumulate(group.lengths)]
    rows = [torch.arange(start, start + n) for start, n in zip(starts, group.lengths, strict=False)]
    return pad_sequence(sorted(rows, key=len, reverse=True), batch_first=True, padding_value=-1)


def _order(groups: Sequence[_Rows], device: torch.device) -> Int[Tensor, " n"] | None:
    """Index of each packed token's result among the results of all blocks; None if they are in order already."""
    computed = torch.cat([group.computed() for group in groups])
    real = (computed >= 0).nonzero().squeeze(1)
    order = torch.empty_like(real)
    order[computed[real]] = real
    return None if order.equal(torch.arange(len(computed))) else order.to(device)


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 H n D"],
    key: Float[Tensor, "1 K n D"],
    value: Float[Tensor, "1 K n E"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 n H E"], None]:
    """Computes attention over a packed row, with the signature of transformers' attention functions.

    Raises:
        NotImplementedError: if the model's attention is not a plain causal softmax.
    """
    assert packed_layout is not None, f"'{NAME}' is only set while a packed row goes through the decoder"
    _refuse(packed_layout, attention_mask, dropout, kwargs)
    pieces = []
    # One split for all groups: the backward pass of every separate slice would allocate a gradient as long as the row.
    cut = [states.split(packed_layout.sizes, dim=2) for states in (query, key, value)]
    for i, rows in enumerate(packed_layout.groups):
        prompt_query, prompt_key, prompt_value = (parts[2 * i] for parts in cut)
        own_query, own_key, own_value = (_own(parts[2 * i + 1], rows) for parts in cut)
        seen_key, seen_value = _behind(prompt_key, own_key), _behind(prompt_value, own_value)  # (g, K, P + L, D)
        pieces += _attend(prompt_query, prompt_key, prompt_value, rows.prompt_blocks, packed_layout, scaling)
        pieces += _attend(own_query, seen_key, seen_value, rows.blocks, packed_layout, scaling)
    out = torch.cat(pieces)
    if packed_layout.order is not None:
        out = out.index_select(0, packed_layout.order)
    return out[None], None


def _refuse(layout: PackedLayout, mask: Tensor | None, dropout: float, asked: dict[str, Any]) -> None:
    beyond = [name for name in BEYOND_SOFTMAX if asked.get(name) is not None]
    window = asked.get("sliding_window")
    if window is not None and window < layout.longest:
        beyond.append(f"a window of {window} tokens")
    if dropout > 0:
        beyond.append(f"attention dropout {dropout:g}")
    if mask is not None:
        beyond.append("a mask of its own")
    if beyond:
        raise NotImplementedError(f"its attention has {', '.join(beyond)}")


def _own(states: Float[Tensor, "1 heads m D"], rows: _Rows) -> Float[Tensor, "g heads L D"]:
    """Unpacks the m tokens of a group's completions into g rows."""
    flat = states[0] if rows.gathered is None else states[0].index_select(1, rows.gathered)
    return flat.unflatten(1, rows.places.shape).transpose(0, 1)


def _behind(prompt: Float[Tensor, "1 K P D"], own: Float[Tensor, "g K L D"]) -> Float[Tensor, "g K S D"]:
    return torch.cat([prompt.expand(len(own), -1, -1, -1), own], 2)


def _attend(
    query: Float[Tensor, "g H L D"],
    key: Float[Tensor, "g K S D"],
    value: Float[Tensor, "g K S E"],
    blocks: Sequence[_Block],
    layout: PackedLayout,
    scaling: float | None,
) -> list[Float[Tensor, "_ H E"]]:
    """Computes causal attention; the last query attends to all S keys. Returns one result a block."""
    past, heads, fold = key.shape[2] - query.shape[2], query.shape[1], query.shape[1] // key.shape[1]
    # Heads of one position become neighbouring rows, so that a block of positions is a plain slice.
    folded = query.unflatten(1, (-1, fold)).transpose(2, 3).flatten(2, 3)  # (g, K, L * fold, D)
    results = []
    for block in blocks:
        rows = _part(folded, block.count, block.start * fold, block.stop * fold)
        keys, values = (_part(states, block.count, 0, past + block.stop) for states in (key, value))
        mask = layout.mask(block.stop - block.start, past + block.stop, fold, query)
        out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
        out = out.unflatten(2, (-1, fold)).transpose(1, 2)  # (count, w, K, fold, E)
        results.append(out.reshape(-1, heads, value.shape[-1]))
    return results


def _part(states: Float[Tensor, "g K L D"], count: int, start: int, stop: int) -> Float[Tensor, "_ K _ D"]:
    """Slices the states; returns them unchanged if the slice is all of them, as the gradient of a slice is a copy."""
    whole = (count, stop - start) == (states.shape[0], states.shape[2])
    return states if whole else states[:count, :, start:stop]


@contextmanager
def attends_packed(decoder: PreTrainedModel) -> Iterator[None]:
    """Makes a decoder use `packed_attention` inside the block; its calls there must pass `packed_layout=`.

    Gradient checkpointing runs layers again in the backward pass, after the block has ended. Its recompute functions
    are therefore wrapped, so that they set `packed_attention` themselves.

    Raises:
        NotImplementedError: if the decoder's attention can't be replaced.
    """
    with ExitStack() as stack:
        stack.enter_context(attends_by(decoder, NAME, packed_attention))
        for module in decoder.modules():
            if CHECKPOINT in vars(module):
                before = vars(module)[CHECKPOINT]
                stack.callback(setattr, module, CHECKPOINT, before)
                setattr(module, CHECKPOINT, _switching_checkpoint(before, decoder))
        yield


def _switching_checkpoint(checkpoint: Callable[..., Any], decoder: PreTrainedModel) -> Callable[..., Any]:
    @wraps(checkpoint)
    def wrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def recomputed(*inputs: Any, **options: Any) -> Any:
            with attends_by(decoder, NAME, packed_attention):
                return function(*inputs, **options)

        return checkpoint(recomputed, *args, **kwargs)

    return wrapped
