"""Checks the given optimiser and learning-rate schedule before training; in a step: warm-up, unscaling, clipping, NaN."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from saerl_lightning.errors import InputError, RunStopped, shown
from saerl_lightning.policy.weights import whole

if TYPE_CHECKING:
    import lightning

DUMMY_SHAPE = torch.Size((2, 2))  # shape of the dummy weight
AS_TRAINED = "give the optimiser and schedule it was trained with, or export its weights and begin a new run from them"
FASTEST = 1000.0  # largest learning rate that is accepted; larger ones are typing errors


def require_makers(owner: str, optimizer: object, lr_scheduler: object = None) -> None:
    """Refuses an optimiser or a schedule that is made already, or is no function that makes one.

    Args:
        owner: Name of the class whose constructor has the arguments.
        optimizer: Value that the user gave for the optimiser.
        lr_scheduler: Value that the user gave for the schedule; null for none.

    Raises:
        InputError: with the function to write.
    """
    if not callable(optimizer):
        name, rate = "AdamW", 1e-5
        if isinstance(optimizer, Optimizer):
            name, rate = type(optimizer).__name__, optimizer.param_groups[0]["lr"]
        raise InputError(
            f"{owner}.optimizer is {shown(optimizer)}; write a function that makes one over the trained weights, "
            f"optimizer=lambda parameters: {name}(parameters, lr={float(rate):g})"
        )
    # Schedules of torch are no functions, but one of a user's may have __call__.
    if lr_scheduler is not None and (isinstance(lr_scheduler, LRScheduler) or not callable(lr_scheduler)):
        made = isinstance(lr_scheduler, LRScheduler)
        call = f"{type(lr_scheduler).__name__}(optimizer, …)" if made else "CosineAnnealingLR(optimizer, T_max=100)"
        raise InputError(
            f"{owner}.lr_scheduler is {shown(lr_scheduler)}; write a function that makes one, "
            f"lr_scheduler=lambda optimizer: {call}"
        )


def require_steps(
    optimizer: Callable[..., Optimizer], lr_scheduler: Callable[..., Any] | None, device: torch.device
) -> None:
    """Takes one step of the optimiser and its schedule on a dummy weight, before models are loaded.

    Args:
        optimizer: Function that builds the optimiser over given weights.
        lr_scheduler: Function that builds the schedule; null for none.
        device: Device that the weights will be on.

    Raises:
        InputError: if optimiser or schedule fails, or the learning rate is out of range.
    """
    made, _ = _stepped(optimizer, device)
    if lr_scheduler is not None:
        with _refusing("lr_scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # schedules of Lightning and torch warn about deprecated calls
            lr_scheduler(made).step()


def require_same_optimiser(
    checkpoint: Mapping[str, Any],
    optimizer: Callable[..., Optimizer],
    scheduled: bool,
    parameters: Sequence[nn.Parameter],
) -> None:
    """Refuses to resume with another optimiser: torch would load the state and fail in the first step or never.

    Args:
        checkpoint: Checkpoint of the resumed run.
        optimizer: Function that builds this run's optimiser.
        scheduled: Whether this run has a learning-rate schedule.
        parameters: Trained parameters of this run, in order.

    Raises:
        InputError: naming the states that the two optimisers store for a weight.
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
    shaped = [name for name, value in own.items() if isinstance(value, Tensor) and value.shape == DUMMY_SHAPE]
    for number, state in states.items():
        # Some strategies store states under names instead of numbers; these are not compared.
        for name in shaped if isinstance(number, int) else []:
            if state[name].shape != parameters[number].shape:
                raise InputError(
                    f"the checkpoint's optimiser is damaged, or of another model: {name} of weight {number} is "
                    f"{tuple(state[name].shape)}, and the weight {tuple(parameters[number].shape)}; give another checkpoint"
                )


def states_of_a_weight(optimizer: Callable[..., Optimizer]) -> float:
    """Counts the numbers that an optimiser keeps for each number that it trains: 2 for AdamW, 1 for SGD with momentum.

    Args:
        optimizer: Function that builds the optimiser over given weights.
    """
    states = _stepped(optimizer, torch.device("cpu"))[1].values()
    kept = sum(state.numel() for state in states if isinstance(state, Tensor) and state.dim() > 0)
    return kept / DUMMY_SHAPE.numel()


def _stepped(optimizer: Callable[..., Optimizer], device: torch.device) -> tuple[Optimizer, Mapping[str, Any]]:
    """Takes one step on a dummy weight; returns the optimiser and its state for the weight."""
    weight = nn.Parameter(torch.zeros(DUMMY_SHAPE, device=device))
    weight.grad = torch.zeros_like(weight)
    closures = []
    with _refusing("optimizer"):
        made = optimizer([weight])
        for group in made.param_groups:
            if not 0 <= float(group["lr"]) <= FASTEST:
                raise InputError(
                    f"the learning rate is {float(group['lr'])}; write a number from 0 to {FASTEST:g}, e.g. 1e-6"
                )
        # Called as Lightning does: the closure returns no loss, so optimisers with a line search fail here.
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
    # A class of torch or of the user may raise any exception for its arguments.
    except Exception as error:
        raise InputError(
            f"model.{name} can't take a step: {' '.join(str(error).split())}; write one of torch.optim that needs nothing "
            "but gradients and the number of the step"
        ) from error


@contextmanager
def warm_up(optimizer: Optimizer, step: int, warmup_steps: int) -> Iterator[None]:
    """Scales the learning rates by (step + 1) / warmup_steps, at most 1, for the step inside the block.

    Args:
        optimizer: Optimiser whose learning rates the schedule has set.
        step: Number of optimiser steps taken so far.
        warmup_steps: Number of steps until the full rate; 0 switches warm-up off.
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
    """Scales the gradients down to a total norm of `max_norm`, if set; returns the norm before."""
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)))


class Gradients:
    """Unscales, clips and checks the gradients of an optimiser step, in this order.

    With `precision: 16-mixed` the loss is scaled up, and a gradient may overflow without harm: the scaler skips the
    step and halves its scale. Skipped steps are counted.
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
        """Prepares the gradients for the step; called by Lightning's hook inside the step.

        Args:
            trainer: Trainer whose precision may scale the loss.
            optimizer: Torch's optimiser, not Lightning's wrapper.
            max_norm: Norm that the gradients are scaled down to; null leaves them.
            complaint: Function that describes a norm that is not finite; called on all ranks or on none.

        Raises:
            RunStopped: if the norm is no number and no scaler is at work, or its scale is below 1 already; the step is
                not taken.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Lightning does not unscale for fused optimisers, and would clip scaled gradients.
            scaler.unscale_(optimizer)
        self.norm = clip_gradients((p for group in optimizer.param_groups for p in group["params"]), max_norm)
        self.overflowed = not math.isfinite(self.norm)
        if not self.overflowed:
            return
        if scaler is None or scaler.get_scale() < 1:
            raise RunStopped(complaint(self.norm), everywhere=True)
        self.skipped += 1


def not_finite(loss: float, grad_norm: float, uids: Sequence[str]) -> str:
    """Message about a loss or a gradient norm that is NaN or infinite."""
    return (
        f"the loss is {loss} and the gradient norm {grad_norm} on the batch of prompts {', '.join(uids)}; stopped before "
        "the step, so the last checkpoint is good. Lower the learning rate, clip more, or look at these prompts."
    )
