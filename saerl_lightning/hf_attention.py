"""Temporarily replaces the attention function of a Hugging Face decoder.

Callers must check that the new function gives the model's own results, within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest relative distance between two computations of one hidden state. Rounding errors are far smaller, and a wrong
# mask gives far larger ones.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


@contextmanager
def attends_by(decoder: PreTrainedModel, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Replaces a decoder's attention function inside the block. The decoder then builds no mask.

    Args:
        decoder: Transformers model whose attention is replaced.
        name: Name for the function in transformers' registry. No mask function may be registered under this name.
        attention: Function with the signature of transformers' attention functions.

    Raises:
        NotImplementedError: if the decoder's attention can't be replaced.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(name, attention)
    before = decoder.config._attn_implementation or "eager"
    decoder.set_attn_implementation(name)
    try:
        if decoder.config._attn_implementation != name:
            raise NotImplementedError("its attention can't be replaced")
        yield
    finally:
        decoder.set_attn_implementation(before)


def attention_window(decoder: PreTrainedModel) -> int | None:
    """Returns the shortest attention window of the decoder's layers, in tokens; None if all layers attend to everything."""
    config = decoder.config
    kinds = set((getattr(config, "layer_types", None) or ["unknown"])[: config.num_hidden_layers])
    if kinds == {"full_attention"}:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size is not None), default=None)


def relative_distance(ours: Float[Tensor, "... d"], theirs: Float[Tensor, "... d"]) -> float:
    """Largest distance between two computations of the same hidden states, as a share of the second's norm."""
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def why_not_replaced(decoder: PreTrainedModel, max_tokens: int, what: str, error: Callable[[], float]) -> str | None:
    """Returns the reason why a decoder can't use another attention; None if it can.

    Attention windows are read from the configuration, because a few tokens do not reach them. Everything else (dropout
    in the attention, soft caps, sinks, recurrent layers, position biases) is found by running a few tokens both ways.

    Args:
        decoder: Decoder whose attention would be replaced.
        max_tokens: Length of the longest sequence that will be read.
        what: Name of the other attention, for the reason.
        error: Runs a few tokens both ways, and returns the `relative_distance` of their hidden states.
    """
    name, window = type(decoder).__name__, attention_window(decoder)
    if window is not None and window < max_tokens:
        return f"{name} attends within windows of {window} tokens, sequences have up to {max_tokens}"
    try:
        apart = error()
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as failure:
        return f"{name} takes no {what} ({str(failure).splitlines()[0]})"
    if not apart <= TOLERANCE[decoder.dtype]:
        return f"{name} differs with {what} by {apart:.2g} of a state's norm"
    return None
