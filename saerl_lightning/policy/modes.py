"""Makes training mode and evaluation mode the same policy: no dropout, no other randomness in the forward pass.

Completions are sampled without dropout. With dropout, the training forward would score another policy: its ratios to
the sampler would be noise, and importance weights, clipping and the mismatch guard all use these ratios.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from saerl_lightning.hf_attention import relative_distance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of random rates in transformers' models and configurations: attention_dropout, layerdrop, jitter_noise, …
CHANCE = re.compile("drop|jitter")
CHECK_TOKENS = ((3, 4, 5, 6, 7, 8, 9, 10), (5, 3, 9, 4, 6, 11, 12, 3))


def switch_off_dropout(model: nn.Module) -> list[str]:
    """Sets every rate of dropout, layer dropping and router noise to 0, in modules and in their configurations.

    Returns:
        The names of the rates that were above 0, each with its former value.
    """
    found = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            found[type(module).__name__] = module.p
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            found |= _zero_rates(holder)
    return [f"{name} {rate:g}" for name, rate in sorted(found.items())]


def _zero_rates(holder: object) -> dict[str, float]:
    rates = (
        {n: v for n, v in vars(holder).items() if isinstance(v, float) and v > 0 and CHANCE.search(n)} if holder else {}
    )
    for name in rates:
        setattr(holder, name, 0.0)
    return rates


@torch.no_grad()
def apart_in_training(model: PreTrainedModel) -> float:
    """Measures the largest difference of hidden states between training and evaluation mode, as a share of their norm.

    A few tokens go through the model in both modes. Weights, modes and random state stay as they are.
    """
    decoder = model.get_decoder()
    tokens, states = torch.tensor(CHECK_TOKENS, device=decoder.device), []
    for training in (True, False):
        with in_mode(model, training):
            states.append(decoder(input_ids=tokens, use_cache=False).last_hidden_state)
    return relative_distance(*states)


@contextmanager
def in_mode(model: PreTrainedModel, training: bool) -> Iterator[None]:
    """Sets the mode of all modules without autocast; restores modes and random state at the end of the block."""
    before = {module: module.training for module in model.modules()}
    device = model.get_decoder().device
    # fork_rng always restores the CPU's random state; only an accelerator has to be named.
    kept = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(kept, device_type=kind), torch.autocast(device.type, enabled=False):
        model.train(training)
        try:
            yield
        finally:
            for module, was in before.items():
                module.training = was
