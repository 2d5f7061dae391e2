"""Processes that grade, with a deadline that holds: a job that overruns it is killed, and its process replaced.

Symbolic graders hang in C loops and huge powers, where no exception or signal handler reaches them; only a kill does.
Imports neither torch nor lightning, so that a fresh process is ready fast. Does not retry: a failed job is NaN.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from saerl_lightning.ranges import Deadline, Workers, require_in_range

READY = "ready"
STARTUP_S = 300.0  # a fresh process imports its grader; far beyond that it hangs

log = logging.getLogger(__name__)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    due: float  # monotonic time by which it must report
    ready: bool = False
    row: int | None = None  # job it works on

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


class WorkerPool:
    """Runs functions in killable processes.

    Processes start with the first `map` and stay warm. They are daemons, ignore Ctrl-C and SIGTERM (the trainer handles
    them), and leave by themselves when the trainer is gone, even if it was killed.

    Args:
        workers: processes at most.
        deadline_s: seconds a job may take, counted from when a ready process starts on it.
        prepare: run in a fresh process before it counts as ready (slow imports).
    """

    def __init__(self, workers: Workers, deadline_s: Deadline, prepare: Callable[[], None] | None = None) -> None:
        self.workers = workers
        self.deadline_s = deadline_s
        self.prepare = prepare
        self.failures: Counter[str] = Counter()  # "overrun", "crash", "error" -> jobs
        self.last_failure = ""  # what the last job that failed did
        self._pool: list[_Worker] = []
        require_in_range(self)

    def map(self, function: Callable[..., float], jobs: Sequence[tuple]) -> list[float]:
        """Calls `function(*job)` for every job.

        Args:
            function: importable by its module's name, from a module that imports fast.
            jobs: arguments of each call.

        Returns:
            The results in the jobs' order; NaN where the job overran the deadline, crashed its process or raised.

        Raises:
            RuntimeError: if a process dies or hangs before it is ready.
        """
        results = [float("nan")] * len(jobs)
        waiting = deque(range(len(jobs)))
        try:
            while waiting or self._busy():
                self._hand_out(function, jobs, waiting)
                self._collect(results)
        except BaseException:  # Ctrl-C too: no one may be left with a job that no one waits for
            self.close()
            raise
        return results

    def close(self) -> None:
        """Kills every process; the next `map` starts new ones."""
        while self._pool:
            self._pool.pop().kill()

    def _busy(self) -> int:
        return sum(worker.row is not None for worker in self._pool)

    def _hand_out(self, function: Callable[..., float], jobs: Sequence[tuple], waiting: deque[int]) -> None:
        while len(self._pool) < min(self.workers, len(waiting) + self._busy()):
            self._pool.append(_start(self.prepare, self.deadline_s))
        for worker in [worker for worker in self._pool if worker.ready and worker.row is None][: len(waiting)]:
            try:
                worker.connection.send((function, jobs[waiting[0]]))
            except (BrokenPipeError, ConnectionResetError):  # it died while idle, which is not the job's fault
                self._pool.remove(worker)
                worker.kill()
            else:
                worker.row = waiting.popleft()
                worker.due = time.monotonic() + self.deadline_s

    def _collect(self, results: list[float]) -> None:
        """Waits until someone reports or is due, then settles every report and every overrun."""
        active = {worker.connection: worker for worker in self._pool if not worker.ready or worker.row is not None}
        pause = min((worker.due for worker in active.values()), default=0.0) - time.monotonic()
        for connection in wait(list(active), timeout=max(pause, 0.0)):
            self._settle(active.pop(connection), results)  # type: ignore[arg-type]
        for worker in active.values():
            if time.monotonic() >= worker.due:
                self._lose(worker, "overrun", f"ran past its deadline of {self.deadline_s:g} s")

    def _settle(self, worker: _Worker, results: list[float]) -> None:
        """Takes a worker's report: that it is ready, a result, an error; or that its pipe ended."""
        try:
            report = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=1.0)
            self._lose(worker, "crash", f"killed its process (exit code {worker.process.exitcode})")
            return
        if report == READY:
            worker.ready, worker.due = True, float("inf")
            return
        value, error = report
        if worker.row is not None:
            results[worker.row] = value
        if error:
            self._count("error", f"raised {error}")
        worker.row = None

    def _lose(self, worker: _Worker, kind: str, what: str) -> None:
        """Ends a worker whose job failed; one that never was ready will not be ready the next time either."""
        self._pool.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RuntimeError(
                "a grader process ended or hung before it was ready (its own message stands above); if the run is a "
                "script of yours, put what it does under `if __name__ == '__main__':`"
            )
        self._count(kind, what)

    def _count(self, kind: str, what: str) -> None:
        if not self.failures[kind]:
            log.warning("a grading job %s; it counts as failed, not as wrong (later ones are only counted)", what)
        self.failures[kind] += 1
        self.last_failure = what


def _start(prepare: Callable[[], None] | None, deadline_s: float) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy the trainer's threads and accelerator state
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, deadline_s), daemon=True, name="grader")
    process.start()
    theirs.close()
    return _Worker(process, ours, due=time.monotonic() + STARTUP_S)


def _serve(connection: Connection, prepare: Callable[[], None] | None, deadline_s: float) -> None:
    """The life of a worker: take a job, report (result, ""), or (NaN, what it raised); leave when the pipe ends."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # both go to all of a group; the trainer finishes its step with them
        signal.signal(asked, signal.SIG_IGN)
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
            connection.send(_run(job))
            faulthandler.cancel_dump_traceback_later()


def _run(job: bytes) -> tuple[float, str]:
    try:
        function, arguments = pickle.loads(job)  # noqa: S301 (from our own trainer)
        return float(function(*arguments)), ""
    except Exception as error:
        return float("nan"), repr(error)[:300]
