"""Where a run's command line runs: on this machine, in a process group of its own, or on a Ray cluster."""

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import NotNegative, require_in_range

GRACE = 10.0  # seconds between asking a run to end and ending it


class Executor(ABC):
    """Runs command lines to their end; several threads call it at once."""

    @abstractmethod
    def check(self) -> None:
        """Refuses, before the first run, what will not work.

        Raises:
            InputError: if something is missing.
        """

    @abstractmethod
    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs a command line and returns its exit code.

        Args:
            command: program and arguments.
            environment: what is added to this process's.
            log: file that stdout and stderr are appended to.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends whatever runs; each `run` then returns."""


class SubprocessExecutor(Executor):
    """Runs on this machine. A child leads a process group, so that its graders and engine end with it."""

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs a child to its end."""
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
        """Asks all process groups to end, and ends them where they do not."""
        with self._lock:
            self._stopping, children = True, list(self._children)
        for child in children:
            _signal(child, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(child.returncode is None for child in children):
            time.sleep(0.05)
        for child in children:
            _signal(child, signal.SIGKILL)  # also what the child left behind in its group


class RayExecutor(Executor):
    """Runs each command line as a task of a Ray cluster that shares this file system. Never tried by us on a cluster.

    Args:
        gpus: that a run asks for.
        cpus: that a run asks for.
    """

    def __init__(self, gpus: NotNegative = 1, cpus: NotNegative = 1) -> None:
        self.gpus = gpus
        self.cpus = cpus
        self._tasks: list[Any] = []
        require_in_range(self)

    def check(self) -> None:
        """Connects to the cluster that RAY_ADDRESS names, or starts one on this machine.

        Raises:
            InputError: if Ray is not installed.
        """
        ray = _ray()
        if not ray.is_initialized():
            ray.init(ignore_reinit_error=True, log_to_driver=False)

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs the command line where Ray has room, from this working directory."""
        ray = _ray()
        remote = ray.remote(num_gpus=self.gpus, num_cpus=self.cpus, max_retries=0)(_on_node)
        task = remote.remote(list(command), dict(environment), str(log.absolute()), str(Path.cwd()))
        self._tasks.append(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayError:  # cancelled, or its node is gone
            return -signal.SIGKILL

    def stop(self) -> None:
        """Cancels all tasks."""
        ray = _ray()
        for task in self._tasks:
            ray.cancel(task, force=True)


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        message = (
            "the executor 'ray' needs Ray, which is not installed; pip install 'ray[default]', or write subprocess"
        )
        raise InputError(message) from error
    return ray


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
        )
    return done.returncode


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _dies_with_parent() -> Callable[[], None] | None:
    """What makes a child end when this process is killed without a chance to say so (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: nothing but one call happens between fork and exec
    return lambda: prctl(1, signal.SIGKILL)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines that a run wrote; what a progress bar overwrote is left out."""
    try:
        text = log.read_bytes()[-16384:].decode(errors="replace")
    except OSError:
        return ""
    shown = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in shown if line][-lines:])
