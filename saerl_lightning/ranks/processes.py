"""The processes of a run on one machine or several: what starts them, what they must have in common, and their end."""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    import lightning

GRACE = 5.0  # seconds before SIGTERM, and again before SIGKILL
GLOO = "pt_gloo_runloop"  # name of the threads that carry out gloo's collectives
QUIET = 5  # looks in a row that must find these threads at rest
LOOK = 0.01  # seconds between two looks
PATIENCE = 2.0  # most seconds that a process's end waits for them


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


def meet(trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
    """Connects processes that torchrun or srun started, so that what is refused on one ends all of them.

    Lightning would do it later on. Processes that Lightning starts itself do not exist yet.

    Args:
        trainer: Trainer of this process.
        module: Module that will be trained.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and environment is not None and not isinstance(environment, LightningEnvironment):
        trainer.strategy.connect(module)
        trainer.strategy.setup_environment()


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


@atexit.register
def let_go() -> None:
    """Waits, when Python ends, until the threads of gloo have let go of the tensors of their last collectives.

    Such a thread needs Python's lock for it. If it asks for the lock once Python is being taken down, the process aborts
    ("terminate called without an active exception"), after a run that has done all it should (PyTorch issue 190489).
    Destroying the process group does not help while something still refers to it, as the meshes of shards do. Sleeping
    gives the lock away.
    """
    until, rested = time.monotonic() + PATIENCE, 0
    while (states := _states_of_gloo()) and rested < QUIET and time.monotonic() < until:
        rested = 0 if "R" in states else rested + 1
        time.sleep(LOOK)


def _states_of_gloo() -> set[str]:
    """Scheduling states of this process's gloo threads, R for one that runs or waits for a core; none without /proc."""
    states = set()
    for task in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, rest = task.read_text().partition("(")[2].rpartition(") ")
        except OSError:  # it has ended meanwhile
            continue
        if name == GLOO:
            states.add(rest[:1])
    return states
