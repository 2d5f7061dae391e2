"""Ranks: what the first training process does for all, and how its result or its error gets to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from saerl_lightning.errors import InputError, RunStopped

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The training processes of a run.

    Args:
        rank: Number of this process, from 0.
        world: Number of processes.
    """

    rank: int
    world: int

    @classmethod
    def present(cls) -> Ranks:
        """Those of torch's process group; one process without it."""
        group = torch.distributed
        ready = group.is_available() and group.is_initialized()
        return cls(group.get_rank(), group.get_world_size()) if ready else cls(0, 1)

    def gather(self, value: Result) -> list[Result]:
        """Gathers every rank's value; no rank goes on before all have come here."""
        parts = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(parts, value)
        return parts

    def by_first(self, work: Callable[[], Result], meanwhile: Callable[[], object] = lambda: None) -> Result:
        """Does a work on the first rank, and returns its result on all.

        Args:
            work: What the first rank does.
            meanwhile: What the others do.

        Raises:
            InputError: on all ranks, if the work raises one.
            RunStopped: on all ranks, if the work raises anything else.
        """
        if self.world == 1:
            return work()
        outcome: tuple[Any, type[InputError | RunStopped] | None, str] = (None, None, "")
        if self.rank == 0:
            try:
                outcome = (work(), None, "")
            except Exception as error:
                kind = InputError if isinstance(error, InputError) else RunStopped
                outcome = (None, kind, str(error) if isinstance(error, InputError | RunStopped) else repr(error))
        else:
            meanwhile()
        box = [outcome]
        torch.distributed.broadcast_object_list(box, src=0)
        result: Any
        result, kind, said = box[0]
        if kind is not None:
            raise RunStopped(said, everywhere=True) if kind is RunStopped else kind(said)
        return result
