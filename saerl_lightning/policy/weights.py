"""The policy's weights under the names that transformers and vLLM know, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of its adapters' wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model  # pyright: ignore[reportReturnType]


@torch.no_grad()
def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of the whole state dict, the tied head under its own name too.

    A LoRA layer is yielded as W + scaling B A, computed aside: merging in place and back would move W by a rounding error
    each time. Engines need the tied head: without it vLLM keeps its old copy, 1.4 to 1.8 nats wrong and no warning.
    """
    if not hasattr(model, "get_base_model"):
        yield from model.state_dict().items()
        return
    from peft.tuners.lora import LoraLayer

    base = base_model(model)
    deltas = {f"{n}.weight": m for n, m in base.named_modules() if isinstance(m, LoraLayer)}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if name in deltas:
            layer = deltas[name]
            deltas_of = layer.get_delta_weight  # pyright: ignore[reportAttributeAccessIssue]
            tensor = tensor + sum(deltas_of(adapter) for adapter in layer.active_adapters)
        yield name, tensor


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Writes the LoRA adapters alone, in peft's layout, without asking any host about the base model."""
    model.save_pretrained(folder, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]


def without_adapters(model: nn.Module) -> AbstractContextManager[object]:
    """Runs the model as it was before training: adapters off. A model without adapters is left as it is."""
    disable = getattr(model, "disable_adapter", None)
    return disable() if disable else nullcontext()


@torch.no_grad()
def fingerprint(model: nn.Module) -> list[float]:
    """Two numbers for each weight and buffer that tell its present values from others, however they were changed.

    They are read off the values: in-place changes through `.data`, as Lightning's WeightAveraging makes them, raise no
    counter of torch's. The bits' exclusive or misses a change of all signs, the sum does not.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.numel()]
    bits = torch.stack([torch.hash_tensor(t).view(torch.int64) for t in tensors])
    sums = torch.stack([t.sum().double() for t in tensors])
    return [*bits.tolist(), *sums.tolist()]
