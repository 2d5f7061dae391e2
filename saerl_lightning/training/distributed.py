"""Collectives of a training step: gather rewards, synchronise gradients. All ranks must call them equally often."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.records import Outcomes

if TYPE_CHECKING:
    import lightning


T = TypeVar("T")


def require_first_machine(trainer: lightning.Trainer) -> None:
    """Refuses several machines where nothing says which is the first: each would wait half an hour for the others.

    Raises:
        InputError: with the commands that start a run on several machines.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing says which machine is the first; start the command on "
            f"each by srun, by torchrun --nnodes {trainer.num_nodes} --nproc_per_node {trainer.num_devices} "
            "--rdzv_backend c10d --rdzv_endpoint FIRST:29500, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )


def mean_over_ranks(trainer: lightning.Trainer, values: Tensor) -> Tensor:
    """Averages a tensor over ranks."""
    return trainer.strategy.reduce(values, reduce_op="mean")  # pyright: ignore[reportReturnType]


def gather_objects(value: T, ranks: int) -> list[T]:
    """Gathers every rank's value in the order of ranks. Values are pickled between the run's own processes."""
    parts = [value] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(parts, value)
    return parts


def gather_outcomes(outcomes: Outcomes, ranks: int) -> Outcomes:
    """Joins the outcomes of all ranks, so that operations that learn from them stay equal on every rank."""
    parts = gather_objects(outcomes, ranks)
    uids = [uid for part in parts for uid in part.uids]
    return Outcomes(uids, torch.cat([p.rewards for p in parts]), torch.cat([p.pass_rate for p in parts]))


def gradient_sync(trainer: lightning.Trainer, last: bool) -> AbstractContextManager[object]:
    """Delays the exchange of gradients until the last micro-batch, as ranks may have different numbers of them."""
    hold_back = getattr(trainer.strategy, "block_backward_sync", None)
    return nullcontext() if last or hold_back is None else hold_back()


class Phases:
    """Sums wall-clock seconds by phase until `drain`.

    `listener`, if set, is called with the name of each phase when it begins; the progress bar uses it.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str], None] | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures the seconds of the block as phase `name`."""
        if self.listener is not None:
            self.listener(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            # CUDA kernels run asynchronously; without waiting, their seconds would count for a later phase.
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds[name] += time.perf_counter() - start

    def drain(self) -> dict[str, float]:
        """Returns the seconds of each phase since the last call and resets them."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


GRACE = 5.0  # seconds before SIGTERM, and again before SIGKILL


def watch_no_more() -> None:
    """Stops the watch that kills this process when another one has ended."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def end(trainer: lightning.Trainer, grace: float = GRACE) -> None:
    """Waits for the processes that the trainer started, then sends SIGTERM, then SIGKILL.

    A process that waits for this one in a collective would wait forever.

    Args:
        trainer: Trainer of this process.
        grace: Seconds to wait before each signal.
    """
    children: Sequence[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for harsher in (subprocess.Popen.terminate, subprocess.Popen.kill):
        until = time.monotonic() + grace
        while time.monotonic() < until and any(child.poll() is None for child in children):
            time.sleep(0.05)
        for child in children:
            harsher(child)
