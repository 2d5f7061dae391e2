"""`study run`, `report`, `publish`, `tables`, …: arms over seeds on one budget, what came of them, and why."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from saerl_lightning import shipped
from saerl_lightning.causal.run import causal
from saerl_lightning.ranges import NotNegative, Workers, require_arguments
from saerl_lightning.study.dashboard import dashboard
from saerl_lightning.study.execution import StudyExecution
from saerl_lightning.study.folder import (
    Resolved,
    alone,
    check_digests,
    check_folder,
    check_runs,
    claim,
    digests,
    listed,
    note_software,
    resolve,
)
from saerl_lightning.study.plan import PlannedRun, duration, estimate, plan_text, planned_runs
from saerl_lightning.study.processes import Executor, RayExecutor, SubprocessExecutor
from saerl_lightning.study.questions import refuse_trained_questions
from saerl_lightning.study.results import RunResult, StudyResults
from saerl_lightning.study.run_record import RunRecord
from saerl_lightning.study.seeding import product_name, product_path, stage_products
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import make_shared
from saerl_lightning.training.loggers import require_key

INTERRUPTED = 130  # as shells say it


def run(
    spec: str,
    out: str | None = None,
    jobs: Workers = 2,
    print_commands: bool = False,
    shared_only: bool = False,
    executor: Literal["subprocess", "ray"] = "subprocess",
    gpus: NotNegative = 1,
) -> None:
    """Runs a study: checks every arm, prints the plan, makes what is shared, runs arms x seeds.

    The same command goes on with a study that was interrupted: finished runs are not repeated, others go on from their
    last checkpoint.

    Args:
        spec: YAML file of the study.
        out: the study's folder; runs/study/NAME by default.
        jobs: runs at a time.
        print_commands: print one command line a run, for a scheduler, and run nothing.
        shared_only: make what the arms share, and run nothing else.
        executor: where runs run: subprocesses here, or tasks of a Ray cluster.
        gpus: that a run asks Ray for.
    """
    require_arguments(run, locals())
    spec = shipped.find(spec)
    study = StudySpec.read(spec)
    root = Path(out or f"runs/study/{study.name}")
    place = SubprocessExecutor() if executor == "subprocess" else RayExecutor(gpus)
    if print_commands:
        print_run_commands(study, Path(spec), root)
        return
    if code := run_study(study, Path(spec), root, jobs, place, shared_only):
        sys.exit(code)


def report(folder: str) -> None:
    """Writes a study's report: report/report.html, report.md and tables, also of a study that is not finished.

    Args:
        folder: of the study.
    """
    from saerl_lightning.study.report.gather import write_report

    print(write_report(Path(folder)))


def publish(folder: str, to: str, unfinished: bool = False) -> None:
    """Writes every run's numbers of a study as CSV files, with its settings; `study tables` needs nothing else.

    Args:
        folder: of the study.
        to: folder to write to, such as docs/results/NAME; what was published of the same study there is replaced.
        unfinished: also while runs are missing; the tables then begin with UNFINISHED.
    """
    from saerl_lightning.study.report.publication import write_publication

    write_publication(Path(folder), Path(to), unfinished)
    print(to)


def tables(folder: str, page: str | None = None) -> None:
    """Makes a study's tables from its published CSV files alone and prints them as Markdown, or writes them into a page.

    Args:
        folder: that `study publish` wrote.
        page: Markdown file that has the lines <!-- tables NAME --> and <!-- /tables NAME -->, NAME being the folder's.
    """
    from saerl_lightning.study.report.publication import section, write_section

    if page is None:
        print(section(Path(folder), Path()), end="")
        return
    write_section(Path(folder), Path(page))
    print(page)


VERBS = {
    "run": run, "report": report, "publish": publish, "tables": tables, "causal": causal, "dashboard": dashboard,
}  # fmt: skip


def run_study(
    spec: StudySpec, source: Path, root: Path, jobs: int, executor: Executor, shared_only: bool = False
) -> int:
    """Runs a study and returns the exit code: 0, or 1 if runs failed.

    Args:
        spec: the study.
        source: the file it was read from.
        root: its folder.
        jobs: runs at a time.
        executor: where runs run.
        shared_only: stop when what the arms share is made.

    Raises:
        InputError: if the study can't be run as it is written, or the folder is another study's.
        RunStopped: if something that the arms share could not be made.
    """
    executor.check()
    with alone(root):
        arms = checked(spec, root)
        if isinstance(executor, SubprocessExecutor):  # a cluster's machines may have a key that this one lacks
            for arm, config in arms.items():
                require_key(listed(config, "trainer.logger"), f"the arm '{arm}' has")
        claim(spec, source, root, digests(spec, arms))
        results = StudyResults.read(root)
        print(plan_text(results, jobs), flush=True)
        unfinished = {(run.arm, run.seed) for run in results.runs if run.state != "finished"}
        left = [run for run in planned_runs(spec, root, arms) if (run.arm, run.seed) in unfinished and not shared_only]
        with _interruptible(executor):
            make_shared(spec, root, executor, lambda text: print(text, flush=True))
            failed = _run_left(spec, root, left, jobs, executor)
    print(_summary(StudyResults.read(root), failed), flush=True)
    return 1 if failed else 0


def print_run_commands(spec: StudySpec, source: Path, root: Path) -> None:
    """Prints one command line a run; `study run` and `study report` take up what those runs leave in the folder."""
    arms = checked(spec, root)
    with alone(root):
        claim(spec, source, root, digests(spec, arms))
    places = {product_name(stage, seed): product_path(spec, stage, seed or 0) for stage, seed in stage_products(spec)}
    if missing := [name for name, place in places.items() if not (root / "shared" / place).exists()]:
        print(
            f"first: main.py study run {source} --out {root} --shared_only true ({', '.join(missing)})", file=sys.stderr
        )
    print("\n".join(run.line for run in planned_runs(spec, root, arms)))


def checked(spec: StudySpec, root: Path) -> dict[str, Resolved]:
    """Checks a study against itself and against its folder, and gives its arms' configurations.

    Raises:
        InputError: for the first thing that is wrong.
    """
    check_folder(spec, root)
    resolved = resolve(spec, root)
    check_digests(digests(spec, resolved), root)
    check_runs(spec, root, resolved)
    refuse_trained_questions(resolved)
    return resolved


def _run_left(
    spec: StudySpec, root: Path, left: Sequence[PlannedRun], jobs: int, executor: Executor
) -> list[RunRecord]:
    """Runs what is not finished, under a progress bar, and gives the runs that failed."""
    failed: list[RunRecord] = []
    with tqdm(total=len(left), desc="runs", unit="run", disable=not left) as bar:

        def ended(record: RunRecord) -> None:
            note_software(root)
            if record.state == "failed":
                failed.append(record)
                bar.write(failure(record), file=sys.stdout)
            bar.set_postfix_str(progress(StudyResults.read(root).runs, jobs), refresh=False)
            bar.update()

        StudyExecution(spec, executor, jobs).run(left, ended)
    return failed


def progress(runs: Sequence[RunResult], jobs: int) -> str:
    """How far the study is, and how long the rest takes."""
    states = [run.state for run in runs]
    seconds = estimate(runs, jobs)
    counts = [f"{states.count(state)} {state}" for state in ("finished", "failed") if state in states]
    return ", ".join([*counts, *([] if seconds is None else [f"about {duration(seconds)} left"])])


def failure(record: RunRecord) -> str:
    """A run that failed, with its own last words."""
    words = "\n".join(f"    {line}" for line in record.error.splitlines())
    return f"failed: {record.arm}, seed {record.seed}, with exit code {record.exit}:\n{words}"


def _summary(results: StudyResults, failed: Sequence[RunRecord]) -> str:
    finished = sum(run.state == "finished" for run in results.runs)
    lines = [f"{finished} of {len(results.runs)} runs are finished: {results.folder}"]
    lines += [
        f"  failed: {each.arm}, seed {each.seed} (log in {results.folder / each.arm / f'seed-{each.seed}'})"
        for each in failed
    ]
    more = "; the same command tries the failed ones again" if failed else ""
    return "\n".join([*lines, f"report: main.py study report {results.folder}{more}"])


@contextlib.contextmanager
def _interruptible(executor: Executor) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into an orderly end: children are ended, records are right, the exit code says so."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        executor.stop()  # what makes a shared stage runs in this thread
        print("\ninterrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
