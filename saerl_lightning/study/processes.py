"""Executors of a study's runs: on this machine in a process group of its own, or on a Ray cluster, which gives each GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saerl_lightning.cluster import ray_actors
from saerl_lightning.errors import InputError
from saerl_lightning.ranges import CountFrom0, NotNegative, require_in_range

GRACE = 10.0  # seconds between SIGTERM and SIGKILL


class Executor(ABC):
    """Runs command lines until they end; several threads call it at once."""

    @abstractmethod
    def check(self, jobs: int) -> None:
        """Refuses a setup that can't work, before the first run.

        Args:
            jobs: Number of command lines that are run at a time.

        Raises:
            InputError: if something is missing.
        """

    @abstractmethod
    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs a command line and returns its exit code.

        Args:
            command: Program and its arguments.
            environment: Environment variables added to those of this process.
            log: File that stdout and stderr are appended to.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends all running command lines; each `run` then returns."""


class SubprocessExecutor(Executor):
    """Runs command lines on this machine. Each leads a process group, so that its graders and engine end with it.

    Args:
        gpus: Number of GPUs that a command line has for itself, as CUDA_VISIBLE_DEVICES; 0 shows all to each. It does
            nothing on a machine without GPUs.
    """

    def __init__(self, gpus: CountFrom0 = 0) -> None:
        self.gpus = gpus
        require_in_range(self)
        self._free = visible_gpus() if gpus else []
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def room(self) -> int | None:
        """Number of command lines that find GPUs at a time; None where they ask for none or there are none."""
        return len(self._free) // self.gpus if self._free else None

    def check(self, jobs: int) -> None:
        """Refuses more command lines at a time than there are GPUs for."""
        room = self.room()
        if room is not None and jobs > room:
            raise InputError(
                f"--jobs {jobs} with --gpus {self.gpus} for each need {jobs * self.gpus} GPUs, and {len(self._free)} "
                f"{'is' if len(self._free) == 1 else 'are'} here; write "
                + (f"--jobs {room}" if room else f"--gpus {len(self._free)} --jobs 1")
                + ", or --gpus 0 to show every run all of them"
            )

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs a command line as a child process until it ends."""
        with self._own_gpus() as own:
            return self._run(command, {**own, **environment}, log)

    @contextlib.contextmanager
    def _own_gpus(self) -> Iterator[dict[str, str]]:
        """Takes GPUs out of the free ones, as an environment variable, and puts them back."""
        with self._lock:
            own = [self._free.pop(0) for _ in range(self.gpus if self._free else 0)]
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}
        finally:
            with self._lock:
                self._free = own + self._free

    def _run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            with self._lock:
                if self._stopping:
                    return -signal.SIGTERM
                child = subprocess.Popen(  # noqa: S603 - the study's own command lines
                    command,
                    env={**os.environ, **threads, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_dies_with_parent(),
                )
                self._children.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)

    def stop(self) -> None:
        """Sends SIGTERM to all process groups, and SIGKILL to those that still run after `GRACE` seconds."""
        with self._lock:
            self._stopping, children = True, list(self._children)
        for child in children:
            _signal(child, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(child.returncode is None for child in children):
            time.sleep(0.05)
        for child in children:
            # The signal also reaches processes that the child left in its group.
            _signal(child, signal.SIGKILL)


class RayExecutor(Executor):
    """Runs each command line as a task of a Ray cluster with a shared file system. Tried on one machine, without GPUs.

    Args:
        gpus: Number of GPUs that a run asks for.
        cpus: Number of CPUs that a run asks for.
    """

    def __init__(self, gpus: NotNegative = 1, cpus: NotNegative = 1) -> None:
        self.gpus = gpus
        self.cpus = cpus
        self._tasks: list[Any] = []
        require_in_range(self)

    def check(self, jobs: int) -> None:
        """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine.

        Raises:
            InputError: if Ray is not installed, or the cluster has no room for so many command lines at a time; Ray would
                wait for ever.
        """
        ray = ray_actors.imported()
        if not ray.is_initialized():
            ray_actors.start(ray)
        room = ray_actors.room_for(ray, self.cpus, self.gpus)
        if room < jobs:
            has = ray.cluster_resources()
            raise InputError(
                f"--jobs {jobs} with --gpus {self.gpus:g} for each is more than the Ray cluster of {has.get('CPU', 0):g} "
                f"CPUs and {has.get('GPU', 0):g} GPUs has room for, which is {room}; "
                f"write {f'--jobs {room}' if room else '--gpus 0'}"
            )

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs the command line on any node with room, in this working directory."""
        ray = ray_actors.imported()
        remote = ray.remote(num_gpus=self.gpus, num_cpus=self.cpus, max_retries=0)(_on_node)
        task = remote.remote(list(command), dict(environment), str(log.absolute()), str(Path.cwd()))
        self._tasks.append(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayError:  # cancelled, or its node is gone
            return -signal.SIGKILL

    def stop(self) -> None:
        """Cancels all tasks; their command lines end with them."""
        ray = ray_actors.imported()
        for task in self._tasks:
            ray.cancel(task, force=True)


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [each.strip() for each in given.split(",") if each.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _on_node(command: list[str], environment: dict[str, str], log: str, folder: str) -> int:
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as file:
        done = subprocess.run(  # noqa: S603 - the study's own command lines
            command,
            env={**os.environ, **environment},
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=_dies_with_parent(),
        )
    return done.returncode


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _dies_with_parent() -> Callable[[], None] | None:
    """Makes a function that ends a child when this process is killed; None where Linux's prctl is missing."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up before the fork: between fork and exec only one plain call is safe.
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGKILL)


def tail(log: Path, lines: int = 12) -> str:
    """Last lines of a run's log, without those that a progress bar overwrote."""
    try:
        text = log.read_bytes()[-16384:].decode(errors="replace")
    except OSError:
        return ""
    shown = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line][-lines:])
