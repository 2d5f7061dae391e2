"""Processes that grade, with a deadline that holds: a job that overruns it is killed, and its process replaced.

Symbolic graders hang in C loops and huge powers, where no exception or signal handler reaches them; only a kill does.
Imports neither torch nor lightning, so that a fresh process is ready fast. Does not retry: a failed job is NaN.
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

from saerl_lightning.ranges import Deadline, Workers, require_in_range

READY = "ready"
STARTUP_S = 300.0  # a fresh process imports its grader; far beyond that it hangs
# multiprocessing's own processes run the trainer's script again, which fails in notebooks and in scripts without a
# `__main__` guard. These run nothing but the jobs. The path of imports comes first, for it leads to this package.
CODE = (
    "import sys; from multiprocessing.connection import Connection; connection = Connection(int(sys.argv[1])); "
    "sys.path[:] = connection.recv(); from saerl_lightning.reward import workers; workers.serve(connection)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Args:
        value: What the function returned; None where the job failed.
        failure: What the failed job did, as in "raised ValueError('…')"; "" where it returned.
    """

    value: Any
    failure: str = ""


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    due: float  # monotonic time by which it must report
    ready: bool = False
    row: int | None = None  # job it works on

    def kill(self) -> None:
        """Kills the process and whatever it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


class WorkerPool:
    """Runs functions in killable processes, in notebooks and in scripts without a `__main__` guard too.

    Processes start with the first job and stay warm. They are in sessions of their own, so that Ctrl-C and SIGTERM reach
    the trainer alone, and leave by themselves when the trainer is gone, even if it was killed.

    Args:
        workers: Largest number of processes.
        deadline_s: Seconds a job may take, counted from when a ready process starts on it.
        prepare: Function run in a fresh process before it counts as ready (slow imports).
    """

    def __init__(self, workers: Workers, deadline_s: Deadline, prepare: Callable[[], None] | None = None) -> None:
        self.workers = workers
        self.deadline_s = deadline_s
        self.prepare = prepare
        self.failures: Counter[str] = Counter()  # "overrun", "crash", "error" -> jobs
        self.last_failure = ""  # what the last job that failed did
        self._pool: list[_Worker] = []
        require_in_range(self)
        weakref.finalize(self, _kill_all, self._pool)  # also where the trainer ends without `close`

    def map(self, function: Callable[..., float], jobs: Sequence[tuple]) -> list[float]:
        """Calls `function(*job)` for every job, and warns of the first that fails.

        Args:
            function: Function from a module that imports fast, or defined in the script or notebook itself.
            jobs: Arguments of each call.

        Returns:
            The numbers in the jobs' order; NaN where the job overran the deadline, crashed its process or raised.

        Raises:
            RuntimeError: if a process dies or hangs before it is ready.
        """
        seen = self.failures.total()
        results = self.run(_number, [(function, *job) for job in jobs])
        if not seen and self.failures:
            what = next(result.failure for result in results if result.failure)
            log.warning("a grading job %s; it counts as failed, not as wrong (later ones are only counted)", what)
        return [float("nan") if result.failure else result.value for result in results]

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Result]:
        """Calls `function(*job)` for every job, and says of each what came of it.

        Args:
            function: Function that returns plain values: they are pickled.
            jobs: Arguments of each call.

        Returns:
            A result a job, in the jobs' order.

        Raises:
            RuntimeError: if a process dies or hangs before it is ready.
        """
        results = [Result(None, "was not run")] * len(jobs)
        waiting = deque((row, cloudpickle.dumps((function, job))) for row, job in enumerate(jobs))
        try:
            while waiting or self._busy():
                self._hand_out(waiting)
                self._collect(results)
        except BaseException:  # Ctrl-C too: no one may be left with a job that no one waits for
            self.close()
            raise
        return results

    def close(self) -> None:
        """Kills every process; the next job starts new ones."""
        _kill_all(self._pool)

    def _busy(self) -> int:
        return sum(worker.row is not None for worker in self._pool)

    def _hand_out(self, waiting: deque[tuple[int, bytes]]) -> None:
        while len(self._pool) < min(self.workers, len(waiting) + self._busy()):
            self._pool.append(_start(self.prepare, self.deadline_s))
        for worker in [worker for worker in self._pool if worker.ready and worker.row is None][: len(waiting)]:
            try:
                worker.connection.send_bytes(waiting[0][1])
            except (BrokenPipeError, ConnectionResetError):  # it died while idle, which is not the job's fault
                self._pool.remove(worker)
                worker.kill()
            else:
                worker.row, _ = waiting.popleft()
                worker.due = time.monotonic() + self.deadline_s

    def _collect(self, results: list[Result]) -> None:
        """Waits until someone reports or is due, then settles every report and every overrun."""
        active = {worker.connection: worker for worker in self._pool if not worker.ready or worker.row is not None}
        pause = min((worker.due for worker in active.values()), default=0.0) - time.monotonic()
        for connection in wait(list(active), timeout=max(pause, 0.0)):
            self._settle(active.pop(connection), results)  # type: ignore[arg-type]
        for worker in active.values():
            if time.monotonic() >= worker.due:
                self._lose(worker, "overrun", f"ran past its deadline of {self.deadline_s:g} s", results)

    def _settle(self, worker: _Worker, results: list[Result]) -> None:
        """Takes a worker's report: that it is ready, a result, an error; or that its pipe ended."""
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
        """Ends a worker whose job failed; one that never was ready will not be ready the next time either."""
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


def _start(prepare: Callable[[], None] | None, deadline_s: float) -> _Worker:
    ours, theirs = Pipe()
    process = subprocess.Popen(  # noqa: S603 (this interpreter, and code that stands above)
        [get_executable(), "-c", CODE, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then it ended at once, as its pipe will say
        ours.send([path or os.getcwd() for path in sys.path])  # noqa: PTH109
        ours.send_bytes(cloudpickle.dumps((prepare, deadline_s)))
    return _Worker(process, ours, due=time.monotonic() + STARTUP_S)


def serve(connection: Connection) -> None:
    """Takes job after job and reports (value, "") or (None, error) until the pipe ends: the life of a grader process."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # the trainer handles both, and finishes its step with its graders
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
            # Should the trainer be gone, no one kills a job that hangs: then this does, even with the GIL held.
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
