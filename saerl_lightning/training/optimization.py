"""Optimiser and learning-rate schedule of a step: checks before training, warm-up, unscaling, clipping, NaN."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saerl_lightning.errors import InputError, RunStopped

if TYPE_CHECKING:
    import lightning

TRIAL = torch.Size((2, 2))  # of the weight of no account
AS_TRAINED = "give the optimiser and schedule it was trained with, or export its weights and begin a new run from them"
FASTEST = 1000.0  # the largest learning rate that is no slip of the pen


def require_steps(
    optimizer: Callable[..., Optimizer], lr_scheduler: Callable[..., Any] | None, device: torch.device
) -> None:
    """Lets an optimiser and its schedule take one step on a weight of no account, before anything heavy is loaded.

    Args:
        optimizer: makes the optimiser over given weights.
        lr_scheduler: makes its schedule; None has none.
        device: that the weights will be on.

    Raises:
        InputError: if either can't be made or stepped, or the learning rate is none.
    """
    made, _ = _stepped(optimizer, device)
    if lr_scheduler is not None:
        with _refusing("lr_scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lightning's and torch's schedules about themselves
            lr_scheduler(made).step()


def require_same_optimiser(
    checkpoint: Mapping[str, Any],
    optimizer: Callable[..., Optimizer],
    scheduled: bool,
    parameters: Sequence[nn.Parameter],
) -> None:
    """Refuses to go on with what another optimiser has learned: torch would take it, and fail in the first step or never.

    Args:
        checkpoint: of the run that is gone on with.
        optimizer: makes this run's optimiser.
        scheduled: whether this run has a schedule of its learning rate.
        parameters: that this run trains, in order.

    Raises:
        InputError: naming what the two optimisers keep of a weight.
    """
    saved = checkpoint["optimizer_states"][0]
    groups, states = saved.get("param_groups") or [{}], saved.get("state") or {}
    made, own = _stepped(optimizer, parameters[0].device)
    kept = next(iter(states.values()), {})
    same = set(kept) == set(own) if states else set(groups[0]) == set(made.param_groups[0])
    if not same:
        raise InputError(
            f"the checkpoint is of another optimiser: of each weight it keeps {_listed(kept)}, and {type(made).__name__} "
            f"(model.optimizer) keeps {_listed(own)}; {AS_TRAINED}"
        )
    if scheduled != bool(checkpoint["lr_schedulers"]):
        has, here = ("no", "one") if scheduled else ("a", "none")
        raise InputError(
            f"the checkpoint has {has} schedule of the learning rate, and this run has {here}; {AS_TRAINED}"
        )
    if (count := len(groups[0].get("params", []))) != len(parameters):
        raise InputError(
            f"the checkpoint's optimiser trains {count} weights, and this run {len(parameters)}; {AS_TRAINED}"
        )
    shaped = [name for name, value in own.items() if isinstance(value, Tensor) and value.shape == TRIAL]
    for number, state in states.items():
        for name in shaped if isinstance(number, int) else []:  # names in place of numbers are a strategy's own
            if state[name].shape != parameters[number].shape:
                raise InputError(
                    f"the checkpoint's optimiser is damaged, or of another model: {name} of weight {number} is "
                    f"{tuple(state[name].shape)}, and the weight {tuple(parameters[number].shape)}; give another checkpoint"
                )


def _stepped(optimizer: Callable[..., Optimizer], device: torch.device) -> tuple[Optimizer, Mapping[str, Any]]:
    """An optimiser that took one step on a weight of no account, and what it keeps of it."""
    weight = nn.Parameter(torch.zeros(TRIAL, device=device))
    weight.grad = torch.zeros_like(weight)
    closures = []
    with _refusing("optimizer"):
        made = optimizer([weight])
        for group in made.param_groups:
            if not 0 <= float(group["lr"]) <= FASTEST:
                raise InputError(
                    f"the learning rate is {float(group['lr'])}; write a number from 0 to {FASTEST:g}, e.g. 1e-6"
                )
        # As Lightning calls it: no loss comes back, which optimisers that search along a line need.
        made.step(lambda: closures.append(True))  # pyright: ignore[reportCallIssue, reportArgumentType]
        if not closures:
            raise TypeError(f"{type(made).__name__} does not call its closure, in which gradients are clipped")
    return made, dict(made.state[weight])


def _listed(kept: Mapping[str, Any]) -> str:
    return ", ".join(sorted(str(name) for name in kept)) or "nothing"


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever a class of torch's or the user's own makes of its arguments
        raise InputError(
            f"model.{name} can't take a step: {' '.join(str(error).split())}; write one of torch.optim that needs nothing "
            "but gradients and the number of the step"
        ) from error


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


class Gradients:
    """The gradients of an optimiser step: unscaled, clipped, and judged, in this order.

    Under `precision: 16-mixed` the loss is scaled up and an overflow is nothing to worry about: the scaler leaves the step
    out and halves its scale. Such steps are counted.
    """

    def __init__(self) -> None:
        self.norm = math.nan  # of the last step, before clipping
        self.overflowed = False  # whether the last step was left out
        self.skipped = 0  # steps left out since the run, or its last resume, began

    def prepare(
        self,
        trainer: lightning.Trainer,
        optimizer: Optimizer,
        max_norm: float | None,
        complaint: Callable[[float], str],
    ) -> None:
        """Makes the gradients ready for the step; called inside it, by the hook that Lightning has for it.

        Args:
            trainer: whose precision may scale the loss.
            optimizer: torch's own, not Lightning's wrapper.
            max_norm: norm that the gradients are scaled down to; None leaves them.
            complaint: what to say of a norm that is no number; called on all ranks or on none.

        Raises:
            RunStopped: if the norm is no number and no scaler is at work, or its scale is below 1 already; the step is not
                taken.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to fused optimisers, and would clip scaled gradients
        self.norm = clip_gradients((p for group in optimizer.param_groups for p in group["params"]), max_norm)
        self.overflowed = not math.isfinite(self.norm)
        if not self.overflowed:
            return
        if scaler is None or scaler.get_scale() < 1:
            raise RunStopped(complaint(self.norm), everywhere=True)
        self.skipped += 1


def not_finite(loss: float, grad_norm: float, uids: Sequence[str]) -> str:
    """What to say of a loss or a gradient norm that is no number."""
    return (
        f"the loss is {loss} and the gradient norm {grad_norm} on the batch of prompts {', '.join(uids)}; stopped before "
        "the step, so the last checkpoint is good. Lower the learning rate, clip more, or look at these prompts."
    )
