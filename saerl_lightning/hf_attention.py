"""Temporarily replaces the attention function of a Hugging Face decoder.

Callers must check that the new function gives the model's own results, within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

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
