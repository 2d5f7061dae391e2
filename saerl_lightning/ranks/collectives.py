"""Collectives of a run's processes: gather values, fail together, synchronise gradients. All must call them equally often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.records import Outcomes

if TYPE_CHECKING:
    import lightning


T = TypeVar("T")


def mean_over_ranks(trainer: lightning.Trainer, values: Tensor) -> Tensor:
    """Averages a tensor over ranks."""
    return trainer.strategy.reduce(values, reduce_op="mean")  # pyright: ignore[reportReturnType]


def gather_objects(value: T, ranks: int) -> list[T]:
    """Gathers every rank's value in the order of ranks. Values are pickled between the run's own processes."""
    parts = [value] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(parts, value)
    return parts


def gather_rows(own: Tensor, ranks: int, rank: int) -> tuple[Tensor, slice]:
    """Joins the rows of all ranks, in their order, and says where this rank's are."""
    parts = gather_objects(own, ranks)
    start = sum(len(part) for part in parts[:rank])
    return torch.cat(parts), slice(start, start + len(own))


def gather_outcomes(outcomes: Outcomes, ranks: int) -> Outcomes:
    """Joins the outcomes of all ranks, so that operations that learn from them stay equal on every rank."""
    return Outcomes.join(gather_objects(outcomes, ranks))


def gradient_sync(trainer: lightning.Trainer, last: bool) -> AbstractContextManager[object]:
    """Delays the exchange of gradients until the last micro-batch, as ranks may have different numbers of them."""
    hold_back = getattr(trainer.strategy, "block_backward_sync", None)
    return nullcontext() if last or hold_back is None else hold_back()


@contextmanager
def agreed() -> Iterator[None]:
    """Lets a block that fails on one rank fail on all of them, at its end. The block must hold no collective.

    The other ranks would otherwise wait for the failed one in their next collective, until somebody ends them.

    Raises:
        RunStopped: on the ranks that did not fail, with the error of the first one that did.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    fail_together(failure)


def fail_together(failure: Exception | None) -> None:
    """Raises on every rank if any rank has a failure; all ranks must call it.

    Args:
        failure: Error of this rank; None if it has none.

    Raises:
        RunStopped: on the ranks that have no failure of their own, with that of the first one that does.
    """
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    said = gather_objects(None if failure is None else _in_a_line(failure), ranks)
    if ranks > 1 and isinstance(failure, InputError | RunStopped):
        failure.everywhere = True
    if failure is not None:
        raise failure
    for rank, each in enumerate(said):
        if each is not None:
            raise RunStopped(f"process {rank} of 0 to {ranks - 1}: {each}", everywhere=True)


def _in_a_line(failure: Exception) -> str:
    """What is told of a failure on other ranks: the message of what is refused, the kind too of anything else."""
    return str(failure) if isinstance(failure, InputError | RunStopped) else f"it failed by {failure!r}"
