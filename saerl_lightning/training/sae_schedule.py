"""The optimiser of SAEs and the course of its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def adam(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam at a learning rate of 1e-3."""
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def rate_factor(step: int, steps: float, warmup_steps: int, decay: float) -> float:
    """What the learning rate is multiplied by at a step: up to 1 in `warmup_steps`, down to 0 at the run's end.

    Args:
        step: optimiser steps taken so far.
        steps: of the whole run.
        warmup_steps: the first step has 1 / warmup_steps of the full rate; 0 warms nothing.
        decay: share of the steps, at the end, that the fall is spread over; the step after the last would have rate 0.
    """
    rise = (step + 1) / max(1, warmup_steps)
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return max(0.0, min(1.0, rise, fall))
