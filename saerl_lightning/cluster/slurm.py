"""SLURM: the signal before a job's end, the request to start the job again, and the number of processes on a machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping

# `#SBATCH --signal=SIGUSR1@120` sends it to every process of the job two minutes before the end of its time.
BEFORE_END = signal.SIGUSR1


def in_job() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def requeue_after(received: str) -> None:
    """Asks SLURM to start the job again if the run was stopped by the signal before its end; says whether it did.

    Args:
        received: Name of the signal that stopped the run.
    """
    if not in_job() or received != BEFORE_END.name:
        return
    job = _job(os.environ)
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)  # noqa: S603, S607
        refused = done.stderr.strip() if done.returncode else None
    except FileNotFoundError:
        refused = "there is no scontrol here"
    said = f"SLURM starts job {job} again" if refused is None else f"SLURM did not requeue job {job}: {refused}"
    print(said, file=sys.stderr, flush=True)


def _job(environment: Mapping[str, str]) -> str:
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def processes_here(environment: Mapping[str, str] | None = None) -> int:
    """Counts the processes of this run on this machine, as torchrun or SLURM says; 1 if neither does.

    Args:
        environment: Environment variables; None takes those of this process.
    """
    given = os.environ if environment is None else environment
    if (count := given.get("LOCAL_WORLD_SIZE", "")).isdigit():  # of torchrun
        return max(1, int(count))
    if "SLURM_PROCID" in given and (found := re.match(r"\d+", given.get("SLURM_NTASKS_PER_NODE", ""))):
        return max(1, int(found[0]))
    return 1
