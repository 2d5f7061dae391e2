"""The processes of a run on one machine or several: what starts them, what they must have in common, and their end."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from saerl_lightning.errors import InputError

if TYPE_CHECKING:
    import lightning

GRACE = 5.0  # seconds before SIGTERM, and again before SIGKILL


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
