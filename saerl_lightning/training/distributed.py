"""What ranks owe each other in a manually optimised step. Every rank must call these the same number of times."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from saerl_lightning.records import Outcomes

if TYPE_CHECKING:
    import lightning

T = TypeVar("T")


def mean_over_ranks(trainer: lightning.Trainer, values: Tensor) -> Tensor:
    """Averages a tensor over ranks."""
    return trainer.strategy.reduce(values, reduce_op="mean")  # pyright: ignore[reportReturnType]


def gather_objects(value: T, ranks: int) -> list[T]:
    """Every rank's value, in the order of ranks. The values travel as pickles between the run's own processes."""
    parts = [value] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(parts, value)
    return parts


def gather_outcomes(outcomes: Outcomes, ranks: int) -> Outcomes:
    """Joins the ranks' outcomes, so that operations that learn from them stay the same on every rank."""
    parts = gather_objects(outcomes, ranks)
    uids = [uid for part in parts for uid in part.uids]
    return Outcomes(uids, torch.cat([p.rewards for p in parts]), torch.cat([p.pass_rate for p in parts]))


def gradient_sync(trainer: lightning.Trainer, last: bool) -> AbstractContextManager[object]:
    """Holds gradients back until the last micro-batch: ranks may have different numbers of them, and send once."""
    hold_back = getattr(trainer.strategy, "block_backward_sync", None)
    return nullcontext() if last or hold_back is None else hold_back()
