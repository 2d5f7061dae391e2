"""Runs the unfinished runs of a study, several at a time, and keeps the record of each run correct.

A failed run does not stop the others. If the study is interrupted, its unfinished runs are marked `stopped`; the next
call resumes them from their last checkpoints.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Event

from saerl_lightning.errors import CALLED_AS, InputError, program
from saerl_lightning.run_folder import RunFolder
from saerl_lightning.study.costs import run_costs, steps_done
from saerl_lightning.study.plan import PlannedRun
from saerl_lightning.study.processes import Executor, tail
from saerl_lightning.study.run_record import RunRecord, last_checkpoint, now, reached, read_record, spent
from saerl_lightning.study.spec import StudySpec

LOG = "log.txt"
# What `fit` prints of a slot that did nothing or acted at random, and of a run that served one end of its plan.
WARNING = re.compile(r"warning: ((?:data\.[\w.]+: |this run ends after ).+)")
LONGEST = 600  # characters of a line that are read


class StudyExecution:
    """Runs planned runs through an executor.

    Args:
        spec: Study, which tells a finished run from one that ended early.
        executor: Executor that starts the command lines.
        jobs: Number of runs at a time.
        before: Function that is called before each run, with its arm and seed; it may find that the run was made
            elsewhere, and put its record into the run's folder.
    """

    def __init__(
        self,
        spec: StudySpec,
        executor: Executor,
        jobs: int,
        before: Callable[[tuple[str, int]], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.executor = executor
        self.jobs = jobs
        self.before = before
        self._stopping = Event()

    def run(self, planned: Sequence[PlannedRun], ended: Callable[[RunRecord], None]) -> list[RunRecord]:
        """Runs all unfinished runs; on KeyboardInterrupt, ends and marks the running ones and raises it again.

        Args:
            planned: Runs of the study, in order.
            ended: Function that is called in this thread with the record of each run that ended.

        Returns:
            Records of all these runs, in the order in which they ended.
        """
        records: list[RunRecord] = []
        pool = ThreadPoolExecutor(self.jobs)
        try:
            left: set[Future[RunRecord]] = {pool.submit(self._one, run) for run in planned}
            while left:
                # Python handles signals only between waits, hence the timeout.
                done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    records.append(future.result())
                    ended(records[-1])
        except BaseException:
            self._stopping.set()
            self.executor.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return records

    def _one(self, run: PlannedRun) -> RunRecord:
        """Runs one run and returns its record, even after an error such as a full disk, so that other runs go on."""
        try:
            self.before((run.arm, run.seed))
        except InputError as error:
            return RunRecord(run.arm, run.seed, "failed", error=str(error))
        record = read_record(run.folder, run.arm, run.seed, self.spec)
        if record.state == "finished" or self._stopping.is_set():
            return record
        record = replace(record, state="running", command=list(run.command), exit=None, error="")
        try:
            resumed = last_checkpoint(run.folder).is_file()
            if not resumed:
                record = self._anew(record, run)
            record, code = self._to_its_end(record, run)
            if resumed and code == 0 and self._only_its_validation_lacks(run):
                record, code = self._to_its_end(self._anew(record, run), run)
            record = self._judged(record, run, code)
            record.write(run.folder)
        except OSError as error:
            return replace(record, state="failed", error=f"{error}; the run's record could not be written")
        except InputError as error:
            return replace(record, state="failed", error=str(error))
        return record

    def _anew(self, record: RunRecord, run: PlannedRun) -> RunRecord:
        RunFolder(run.folder).begin_anew()
        return replace(record, started="", seconds=0.0)

    def _to_its_end(self, record: RunRecord, run: PlannedRun) -> tuple[RunRecord, int]:
        """Runs one run, from its last checkpoint if there is one; returns its record and exit code."""
        began = time.monotonic()
        record = replace(record, started=record.started or now())
        record.write(run.folder)
        code = self.executor.run(run.command, {**run.environment, CALLED_AS: program()}, run.folder / LOG)
        return replace(record, seconds=round(record.seconds + time.monotonic() - began, 2)), code

    def _only_its_validation_lacks(self, run: PlannedRun) -> bool:
        """Whether a resumed run had no step left to do, but its last validation was not in its checkpoint."""
        return not self._stopping.is_set() and spent(run.folder, self.spec) and not reached(run.folder, self.spec)

    def _judged(self, record: RunRecord, run: PlannedRun, code: int) -> RunRecord:
        record = replace(record, exit=code, costs=run_costs(run.folder))
        if code == 0 and reached(run.folder, self.spec):
            return replace(record, state="finished")
        if self._stopping.is_set():
            return replace(record, state="stopped")
        if code != 0:
            return replace(record, state="failed", error=tail(run.folder / LOG) or f"ended with {code}")
        steps, tokens = steps_done(run.folder)
        wanted = f"{self.spec.budget.steps or self.spec.budget.generated_tokens}"
        error = (
            f"it ended by itself after {steps} steps and {tokens:.0f} generated tokens, before its budget of {wanted}: its "
            "plan ran out; lower the budget, or write trainer.max_epochs: -1 in the base"
        )
        return replace(record, state="failed", error=error)


def data_warnings(log: Path) -> dict[str, str]:
    """Reads what a run's log says of data that was not planned as asked, by the words before their numbers."""
    with log.open(errors="replace") as lines:
        found = [match[1].strip() for line in lines if (match := WARNING.match(line[:LONGEST]))]
    return {re.split(r"[\d(]", each)[0]: each for each in reversed(found)}
