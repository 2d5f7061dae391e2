"""Grader processes with a strict deadline: a job that exceeds it is killed, and its process is replaced.

Symbolic graders can hang in C code and huge powers, which neither exceptions nor signal handlers interrupt, only a
kill. This module imports neither torch nor lightning, so that processes start fast. A failed job is not repeated: its
grade is NaN.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any

import cloudpickle

from saerl_lightning.cluster import slurm
from saerl_lightning.ranges import Deadline, Workers, require_in_range

READY = "ready"
OVERRAN = "ran past its deadline"  # how such failures begin
STARTUP_S = 300.0  # seconds for a new process to import its grader
# multiprocessing would run the trainer's script again, which fails in notebooks and in scripts without a `__main__`
# guard. This code only runs jobs. The import path comes first, because this package is found through it.
CODE = (
    "import sys; from multiprocessing.connection import Connection; connection = Connection(int(sys.argv[1])); "
    "sys.path[:] = connection.recv(); from saerl_lightning.reward import workers; workers.serve(connection)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Args:
        value: Value that the function returned; None if the job failed.
        failure: Description of the failure, such as "raised ValueError('…')"; "" for success.
    """

    value: Any
    failure: str = ""


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    due: float  # monotonic time by which the process must answer
    ready: bool = False
    row: int | None = None  # number of the current job

    def kill(self) -> None:
        """Kills the process and all processes that it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


class WorkerPool:
    """Runs functions in processes that can be killed. Works in notebooks and in scripts without a `__main__` guard.

    Processes start with the first job and are used again. Each has its own session, so that Ctrl-C and SIGTERM reach
    only the trainer. They end by themselves after the trainer has ended, even if it was killed.

    Args:
        workers: Largest number of processes on a machine, shared by the training processes there, with at least one for each.
        deadline_s: Largest time for a job, in seconds, counted from its start in a ready process.
        prepare: Function that a new process runs before its first job, such as slow imports.
    """

    def __init__(self, workers: Workers, deadline_s: Deadline, prepare: Callable[[], object] | None = None) -> None:
        self.workers = workers
        self.deadline_s = deadline_s
        self.prepare = prepare
        self.failures: Counter[str] = Counter()  # number of jobs by kind: "overrun", "crash", "error"
        self.last_failure = ""  # description of the last failed job
        self._pool: list[_Worker] = []
        require_in_range(self)
        weakref.finalize(self, _kill_all, self._pool)  # in case the trainer ends without `close`

    def map(self, function: Callable[..., float], jobs: Sequence[tuple]) -> list[float]:
        """Calls `function(*job)` for every job, and logs a warning for the first failure.

        Args:
            function: Function from a module that imports fast, or defined in the user's script or notebook.
            jobs: Arguments of each call.

        Returns:
            The numbers in the order of the jobs; NaN for a job that exceeded the deadline, crashed or raised an
            exception.

        Raises:
            RuntimeError: if a process dies or hangs before it is ready.
        """
        seen = self.failures.total()
        results = self.run(_number, [(function, *job) for job in jobs])
        if not seen and self.failures:
            what = next(result.failure for result in results if result.failure)
            log.warning("a grading job %s; it counts as not graded, not as wrong (later ones are only counted)", what)
        return [float("nan") if result.failure else result.value for result in results]

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Result]:
        """Calls `function(*job)` for every job, and returns each job's result or failure.

        Args:
            function: Function whose results can be pickled.
            jobs: Arguments of each call.

        Returns:
            One result per job, in the same order.

        Raises:
            RuntimeError: if a process dies or hangs before it is ready.
        """
        results = [Result(None, "was not run")] * len(jobs)
        waiting = deque((row, cloudpickle.dumps((function, job))) for row, job in enumerate(jobs))
        try:
            while waiting or self._busy():
                self._hand_out(waiting)
                self._collect(results)
        except BaseException:  # also Ctrl-C: no process may keep a job whose result nobody reads
            self.close()
            raise
        return results

    def close(self) -> None:
        """Kills all processes. The next job starts new ones."""
        _kill_all(self._pool)

    def _busy(self) -> int:
        return sum(worker.row is not None for worker in self._pool)

    def _hand_out(self, waiting: deque[tuple[int, bytes]]) -> None:
        share = max(1, self.workers // slurm.processes_here())
        while len(self._pool) < min(share, len(waiting) + self._busy()):
            self._pool.append(_start(self.prepare, self.deadline_s))
        for worker in [worker for worker in self._pool if worker.ready and worker.row is None][: len(waiting)]:
            try:
                worker.connection.send_bytes(waiting[0][1])
            except (BrokenPipeError, ConnectionResetError):  # the process died while idle, so the job is not at fault
                self._pool.remove(worker)
                worker.kill()
            else:
                worker.row, _ = waiting.popleft()
                worker.due = time.monotonic() + self.deadline_s

    def _collect(self, results: list[Result]) -> None:
        """Waits for the next answer or deadline, then handles all answers and all exceeded deadlines."""
        active = {worker.connection: worker for worker in self._pool if not worker.ready or worker.row is not None}
        pause = min((worker.due for worker in active.values()), default=0.0) - time.monotonic()
        for connection in wait(list(active), timeout=max(pause, 0.0)):
            self._settle(active.pop(connection), results)  # type: ignore[arg-type]
        for worker in active.values():
            if time.monotonic() >= worker.due:
                self._lose(worker, "overrun", f"{OVERRAN} of {self.deadline_s:g} s", results)

    def _settle(self, worker: _Worker, results: list[Result]) -> None:
        """Handles one message of a process: ready, result or error; or the end of its pipe."""
        try:
            report = worker.connection.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=1.0)
            self._lose(worker, "crash", f"killed its process (exit code {worker.process.returncode})", results)
            return
        if report == READY:
            worker.ready, worker.due = True, float("inf")
            return
        value, error = report
        if worker.row is not None:
            results[worker.row] = Result(value, f"raised {error}" if error else "")
        if error:
            self._count("error", f"raised {error}")
        worker.row = None

    def _lose(self, worker: _Worker, kind: str, what: str, results: list[Result]) -> None:
        """Ends a process whose job failed. A process that was never ready would fail again, so that is an error."""
        self._pool.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RuntimeError("a grader process ended or hung before it was ready (its own message stands above)")
        if worker.row is not None:
            results[worker.row] = Result(None, what)
        self._count(kind, what)

    def _count(self, kind: str, what: str) -> None:
        self.failures[kind] += 1
        self.last_failure = what


def _kill_all(pool: list[_Worker]) -> None:
    while pool:
        pool.pop().kill()


def _start(prepare: Callable[[], object] | None, deadline_s: float) -> _Worker:
    ours, theirs = Pipe()
    process = subprocess.Popen(  # noqa: S603 (this interpreter, and code that stands above)
        [get_executable(), "-c", CODE, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    # If the process has ended already, reading its pipe will report it later.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        ours.send([path or os.getcwd() for path in sys.path])  # noqa: PTH109
        ours.send_bytes(cloudpickle.dumps((prepare, deadline_s)))
    return _Worker(process, ours, due=time.monotonic() + STARTUP_S)


def serve(connection: Connection) -> None:
    """Runs jobs in a grader process until the pipe ends. Sends (value, "") or (None, error) for each job."""
    # The trainer handles these signals, and needs its graders to finish the step.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    prepare, deadline_s = pickle.loads(connection.recv_bytes())  # noqa: S301 (from our own trainer)
    if prepare is not None:
        prepare()
    connection.send(READY)
    with Path(os.devnull).open("w") as nowhere:
        while True:
            try:
                job = connection.recv_bytes()
            except (EOFError, OSError):
                return
            # If the trainer is gone, nobody kills a job that hangs. This timer ends the process then, even while the
            # GIL is held.
            faulthandler.dump_traceback_later(2 * deadline_s + 1, exit=True, file=nowhere)
            connection.send_bytes(_done(job))
            faulthandler.cancel_dump_traceback_later()


def _done(job: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(job)  # noqa: S301 (from our own trainer)
        return pickle.dumps((function(*arguments), ""))
    except Exception as error:
        return pickle.dumps((None, repr(error)[:300]))


def _number(function: Callable[..., float], *arguments: Any) -> float:
    return float(function(*arguments))
