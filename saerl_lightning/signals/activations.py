"""The residual stream of a causal language model at one layer: read without computing what comes after it, or replaced.

Pure functions over a loaded decoder. They know nothing of prompts, SAEs or files. d is the width of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def middle_layer(layers: int) -> int:
    """The layer that signals are read from where none is named: half of the depth, counted from 0."""
    return layers // 2


def truncate(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Cuts the decoder behind a layer: later layers, the final norm and the head are never run.

    The weights of what is kept are shared with `model`, which is changed in place: its decoder ends early from now on.

    Args:
        model: a causal language model whose decoder has `layers` and a final `norm` (Llama, Qwen, Gemma, ...); of a model
            that sees pictures too, its text decoder is taken.
        layer: last layer that is run, from 0; its output is TransformerLens' `blocks.<layer>.hook_resid_post`.

    Returns:
        The decoder: token ids in, the residual stream after `layer` out.

    Raises:
        InputError: if the model has no such layer, or is not built of `layers` and a `norm`.
    """
    decoder: Any = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None or not hasattr(decoder, "norm"):
        raise InputError(
            f"{type(model).__name__} has no `layers` and `norm` to cut at; use a Llama-like model (Llama, Qwen, Gemma)"
        )
    if not 0 <= layer < len(layers):
        raise InputError(f"layer is {layer}, but the model has layers 0 to {len(layers) - 1}; write one of them")
    decoder.layers = layers[: layer + 1]
    decoder.config.num_hidden_layers = layer + 1  # some decoders loop over this number, not over the list
    decoder.norm = nn.Identity()
    return decoder


@torch.inference_mode()
def residual_stream(
    decoder: PreTrainedModel, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T d"]:
    """Runs a truncated decoder over right-padded rows.

    Args:
        decoder: from `truncate`.
        tokens: token ids.
        mask: true where a token is real; padding stands at the end of a row.

    Returns:
        The residual stream; rows of padding hold numbers without meaning.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return decoder(
        input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).last_hidden_state


@contextmanager
def replaced_output(
    model: PreTrainedModel,
    layer: int,
    replace: Callable[[Float[Tensor, "B t d"], Mapping[str, Any]], Float[Tensor, "B t d"]],
) -> Iterator[None]:
    """Puts something else in place of a layer's output, in every forward pass for as long as the context lasts.

    Args:
        model: whole.
        layer: whose output is replaced, from 0.
        replace: makes the new stream of the old one and of the keyword arguments that the layer was called with.

    Raises:
        InputError: if the model has no such layer.
    """

    def hook(_module: Any, _inputs: Any, given: Mapping[str, Any], output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output  # transformers' layers give either
        made = replace(stream, given)
        return (made, *output[1:]) if isinstance(output, tuple) else made

    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or not 0 <= layer < len(layers):
        have = "no `layers`" if layers is None else f"layers 0 to {len(layers) - 1}"
        raise InputError(f"layer is {layer}, but {type(model).__name__} has {have}; write one that it has")
    handle = layers[layer].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def pooled_positions(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Positions that may be trained on and pooled: real tokens without the first of each row.

    The first position is an attention sink in most models; its norm is a hundred times the others' (Sun et al., arXiv
    2402.17762).
    """
    kept = mask.clone()
    kept[:, 0] = False
    return kept
