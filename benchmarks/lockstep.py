"""Training processes in lockstep: a step runs only when the parent says so, so that never more than one computes.

Interleaving step by step is what makes a ratio trustworthy on a machine whose speed drifts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """What a side tells of one step."""

    seconds: float  # from the start of the step to the start of the next, data and logging included
    phases: Mapping[str, float]  # seconds of the parts it times itself
    completion_tokens: float  # mean length of the completions
    zero_variance: float  # share of the groups whose completions all earned the same
    start_gb: float  # resident memory when the first step began: interpreter, libraries, weights
    peak_gb: float  # highest resident memory since then


class Gate:
    """The child's end: reports the step that ended and waits for a line on stdin.

    Args:
        reports: file the reports are written to, one JSON line a step, and an empty line when ready for the first.
    """

    def __init__(self, reports: str) -> None:
        self.reports = reports
        self._began: float | None = None
        self._start_gb = 0.0

    def wait(self, phases: Mapping[str, float], completion_tokens: float, zero_variance: float) -> None:
        """Ends one step and begins the next when told to; the numbers are those of the step that ends."""
        ended, line = time.perf_counter(), ""
        if self._began is None:
            reset_peak_memory()
            self._start_gb = peak_memory_gb()
        else:
            seconds, memory = ended - self._began, (self._start_gb, peak_memory_gb())
            line = json.dumps(asdict(StepReport(seconds, phases, completion_tokens, zero_variance, *memory)))
        with Path(self.reports).open("a") as out:
            print(line, file=out)
        if not sys.stdin.readline():
            raise SystemExit("nobody is waiting for the next step")
        self._began = time.perf_counter()


class Side:
    """The parent's end: a training process that is started, stepped and stopped. One thread, no network.

    Args:
        name: in messages.
        command: a Python command line without the interpreter; `{reports}` in it becomes the file its gate writes to.
        folder: where the process runs.
        log: file that gets all it prints.
        import_from: folder its modules are imported from, beside the installed ones.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, log: Path, import_from: Path) -> None:
        self.name = name
        self.command = command
        self.folder = folder
        self.log = log
        self.import_from = import_from

    def __enter__(self) -> Side:
        """Starts the process and waits until it stands before its first step."""
        reading, writing = os.pipe()
        command = [part.replace("{reports}", f"/dev/fd/{writing}") for part in self.command]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(self.import_from)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                text=True,
            )
        os.close(writing)
        self._reports = os.fdopen(reading)
        assert self._process.stdin is not None
        self._orders = self._process.stdin
        self._read()
        return self

    def __exit__(self, *exc: object) -> None:
        """Kills the process: it stands before a step that nobody wants."""
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._reports.close()

    def step(self) -> StepReport:
        """Lets the process take one step."""
        self._orders.write("go\n")
        self._orders.flush()
        return StepReport(**json.loads(self._read()))

    def _read(self) -> str:
        line = self._reports.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped; the end of {self.log}:\n{self.log.read_text()[-3000:]}")
        return line


def reset_peak_memory() -> None:
    """Lets the kernel measure this process's peak memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Highest memory of this process since `reset_peak_memory`, in GB: of the GPU if it uses one, else resident."""
    if (cuda := _cuda()) is not None:
        return cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e9


def _cuda() -> Any:
    """torch.cuda if this process uses a GPU, without importing torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
