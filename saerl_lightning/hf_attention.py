"""Another attention under an unchanged Hugging Face decoder: setting it for a while, and what is to be known before.

Which attention, and whether its results are the model's own, is the affair of those who set it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest distance of two ways to one hidden state, as a share of its norm. Rounding stays far below; a wrong mask goes far
# beyond.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


@contextmanager
def attends_by(decoder: PreTrainedModel, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Lets a decoder use an attention function inside the block. The decoder then builds no mask.

    Args:
        decoder: a transformers model.
        name: that the function gets in transformers' registry; no mask function may be registered under it.
        attention: of the signature of transformers' attention functions.

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
    """The shortest window that a layer of the decoder attends within, in tokens; None where all see everything."""
    config = decoder.config
    kinds = set((getattr(config, "layer_types", None) or ["unknown"])[: config.num_hidden_layers])
    if kinds == {"full_attention"}:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size is not None), default=None)
