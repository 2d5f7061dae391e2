"""The optimiser's side of a step: building it, warm-up, clipping, and the refusal to step on a loss that is no number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from saerl_lightning.errors import RunStopped


@contextmanager
def warm_up(optimizer: Optimizer, step: int, warmup_steps: int) -> Iterator[None]:
    """Scales the learning rates by (step + 1) / warmup_steps, up to 1, for the step taken inside.

    Args:
        optimizer: whose learning rates the schedule has set.
        step: optimiser steps taken so far.
        warmup_steps: steps until the full rate; 0 warms nothing.
    """
    factor = min(1.0, (step + 1) / max(1, warmup_steps))
    scheduled = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scales the gradients down to a total norm of `max_norm` (null leaves them) and returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm))


def require_finite(loss: float, grad_norm: float, uids: Sequence[str]) -> None:
    """Refuses to step on NaN or infinity.

    Raises:
        RunStopped: naming the batch; the weights are those before it.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise RunStopped(
            f"the loss is {loss} and the gradient norm {grad_norm} on the batch of prompts {', '.join(uids)}; stopped before "
            "the step, so the last checkpoint is good. Lower the learning rate, clip more, or look at these prompts."
        )
