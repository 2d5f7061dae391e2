"""A program of a model, run in a process of its own behind walls: what it is sent, says and prints, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

START_S = 30.0  # until Python has started; none of the program's own time
PRINTED = 1 << 20  # characters that may be printed beyond what was wanted
CONFINED = Path(__file__).with_name("confined.py")
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """Limits of a program's process.

    Args:
        deadline_s: Seconds that it may take, from the moment that Python has started.
        memory_mb: Address space, in MiB.
    """

    deadline_s: float
    memory_mb: int

    def less(self, seconds: float) -> Limits:
        """The limits when some seconds are spent."""
        return replace(self, deadline_s=self.deadline_s - seconds)


def adopt() -> None:
    """Makes this process the parent of orphans among its descendants, so that it can end them too, and end with its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone; the program that it runs ends with it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class Program:
    """A process that will run one program; when the block ends it is killed.

    Args:
        limits: Limits of the process.
        given: Text of its standard input; null for none.
        wanted: Number of characters that it is expected to print; much more ends it.
    """

    def __init__(self, limits: Limits, given: str | None = None, wanted: int = 0) -> None:
        self.limits = limits
        self.given = given
        self.most = PRINTED + 2 * wanted
        self.missing: tuple[str, ...] = ()  # walls that the kernel did not put up
        self.seconds = 0.0  # that the program took
        self._lines = b""

    def __enter__(self) -> Self:
        """Starts the process, and waits until its walls are up.

        Raises:
            RuntimeError: if it does not get that far, which is no fault of the program.
        """
        self._channel, theirs = socket.socketpair()
        limits = {"cpu_s": int(self.limits.deadline_s) + 2, "memory_bytes": self.limits.memory_mb << 20}
        with theirs, tempfile.TemporaryFile() as given:
            given.write((self.given or "").encode(errors="replace"))
            given.seek(0)
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a file of ours)
                [sys.executable, "-I", "-B", str(CONFINED), str(theirs.fileno()), json.dumps(limits)],
                stdin=given,
                stdout=subprocess.DEVNULL if self.given is None else subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                cwd="/",
            )
        self._due = time.monotonic() + START_S
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._channel.close()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line; the first one starts the program."""
        begins = not self._began
        self._channel.settimeout(max(self._left, 0.01))
        with contextlib.suppress(OSError):  # it is gone, or does not read: its silence will tell
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        if begins:
            self._begin()

    def heard(self) -> Any:
        """Waits for a line; None if none comes in time, or if it is no JSON."""
        while b"\n" not in self._lines and len(self._lines) < self.most:
            part = self._received()
            if not part:
                self.seconds = self.limits.deadline_s - self._left
                return None
            self._lines += part
        line, _, self._lines = self._lines.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return {}

    def printed(self) -> str | None:
        """Waits for the program's end; None unless it ended well, in time and after a moderate number of characters."""
        assert self._process.stdout is not None
        pieces, count = [], 0
        while piece := self._read(self._process.stdout.fileno()):
            pieces.append(piece)
            count += len(piece)
            if count > self.most:
                return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(self._left, 0.0))
        self.seconds = self.limits.deadline_s - self._left
        return b"".join(pieces).decode(errors="replace") if self._process.returncode == 0 else None

    _began = False

    def _begin(self) -> None:
        first = self.heard()
        if not isinstance(first, dict) or "missing" not in first:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)
            raise RuntimeError(
                f"the process of a program did not start (exit code {self._process.poll()}); memory_mb is "
                f"{self.limits.memory_mb}, and Python must fit into it"
            )
        self.missing, self._began = tuple(first["missing"]), True
        self._due = time.monotonic() + self.limits.deadline_s

    @property
    def _left(self) -> float:
        return self._due - time.monotonic()

    def _received(self) -> bytes:
        try:
            self._channel.settimeout(max(self._left, 0.0) or 1e-6)
            return self._channel.recv(1 << 16)
        except OSError:
            return b""

    def _read(self, handle: int) -> bytes:
        ready, _, _ = select.select([handle], [], [], max(self._left, 0.0))
        return os.read(handle, 1 << 16) if ready else b""


def end_orphans() -> None:
    """Ends what programs left behind, for a process that adopts. With all walls up they start no processes."""
    place = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    while place.exists() and (left := place.read_text().split()):
        for child in map(int, left):
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
