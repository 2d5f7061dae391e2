"""The trial that fused weights stand before they are used: the logits of a few tokens against the policy's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_lightning.rollout.decoding import Decoder
from saerl_lightning.rollout.fused.decoder import FusedDecoder
from saerl_lightning.rollout.fused.weights import FusedWeights, NotLlamaLike, Shape, fuse
from saerl_lightning.rollout.policy_decoder import PolicyDecoder, RoomyLayer, make_cache

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # others turn otherwise in longer texts, which no trial shows
EXACT, ROUNDED = 1e-4, 5e-2  # largest difference of two logits, as a share of the largest logit


def fuse_weights(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]], to_try: bool) -> FusedWeights:
    """Fuses the weights of a Llama-like model.

    Args:
        model: the policy, in evaluation mode, autocast off.
        named_tensors: its whole state dict, adapters merged.
        to_try: compare logits before trusting the result; the first time.

    Raises:
        NotLlamaLike: saying what the model has or does that a Llama-like model does not.
    """
    try:
        check_config(model.config)
        weights = fuse(named_tensors, Shape.of(model.config), model.dtype)
        if to_try:
            check_logits(model, weights)
    except (AttributeError, RuntimeError, ValueError) as error:  # weights that are sharded, of other shapes, too large
        raise NotLlamaLike(f"fusing its weights failed: {error}") from error
    return weights


def check_config(config: PretrainedConfig) -> None:
    """Refuses what a trial of a few tokens can't see.

    Raises:
        NotLlamaLike: if attention or rotary embedding depends on how long the text is.
    """
    layers = make_cache(config, 1).layers
    if not layers or any(type(layer) is not RoomyLayer for layer in layers):
        raise NotLlamaLike("some of its layers do not attend to the whole text")
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in FIXED_ROTARY:
        raise NotLlamaLike(f"its rotary embedding, {rotary}, changes with the length of the text")


def check_logits(model: PreTrainedModel, weights: FusedWeights) -> None:
    """Decodes a few tokens both ways: two unequal prompts, three rows each, some of them dropped on the way.

    Args:
        model: the policy, in evaluation mode.
        weights: its weights, fused.

    Raises:
        NotLlamaLike: if the logits differ by more than rounding.
    """
    vocabulary = len(weights.embedding)
    prompts = [[(7919 * i + 31 * p) % vocabulary for i in range(1, 7 - 2 * p)] for p in range(2)]
    own = _logits(PolicyDecoder(model, prompts, 3, 3), vocabulary)
    fused = _logits(FusedDecoder(model, weights, prompts, 3, 3), vocabulary)
    difference = float((own - fused).abs().max() / own.abs().max())
    exact = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    if not difference <= (EXACT if exact else ROUNDED):  # also where it is no number
        raise NotLlamaLike(f"its logits differ from those with fused weights, by {difference:.1g} of the largest")


def _logits(decoder: Decoder, vocabulary: int) -> Tensor:
    """Logits of the prefill, of a step, and of a step of the rows that are kept."""
    logits = [decoder.prefill()]
    rows = torch.arange(len(logits[0]), device=logits[0].device)
    logits.append(decoder.step((rows * 104729 + 1) % vocabulary))
    kept = rows[torch.tensor([0, 2, 5], device=rows.device)]
    decoder.keep(kept)
    logits.append(decoder.step((kept * 15485863 + 2) % vocabulary))
    return torch.cat(logits).float()
