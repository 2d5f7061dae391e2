"""Runs the arms of a study with several seeds on one budget, reports the results, and publishes them."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import yaml

from saerl_lightning import shipped
from saerl_lightning.causal.run import causal
from saerl_lightning.errors import InputError, program
from saerl_lightning.progress import Bar
from saerl_lightning.ranges import NotNegative, Workers, require_arguments
from saerl_lightning.study.dashboard.workspace import dashboard
from saerl_lightning.study.execution import StudyExecution
from saerl_lightning.study.folder import (
    Resolved,
    alone,
    check_digests,
    check_folder,
    check_runs,
    claim,
    common_inputs,
    digests,
    listed,
    note_software,
    resolve,
)
from saerl_lightning.study.gate import gate_folder, gate_result, gate_study, require_gate
from saerl_lightning.study.others.compare import compare
from saerl_lightning.study.plan import PlannedRun, failure, plan_text, planned_runs, progress, summary
from saerl_lightning.study.processes import Executor, RayExecutor, SubprocessExecutor
from saerl_lightning.study.questions import refuse_trained_questions
from saerl_lightning.study.records import Records, seeds_from_records
from saerl_lightning.study.report.numbers import read_numbers
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.run_record import RunRecord
from saerl_lightning.study.seeding import product_name, product_path, stage_products
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import make_shared, needless
from saerl_lightning.training.loggers import require_key

INTERRUPTED = 130  # the exit code that shells give after Ctrl-C


def run(
    spec: str,
    out: str | None = None,
    jobs: Workers | None = None,
    print_commands: bool = False,
    shared_only: bool = False,
    executor: Literal["subprocess", "ray"] = "subprocess",
    gpus: NotNegative = 1,
    records: str | None = None,
) -> None:
    """Runs a study: checks every arm, prints the plan, makes shared products, and runs all arms with all seeds.

    The same command resumes an interrupted study: finished runs are not repeated, and others continue from their last
    checkpoint.

    Args:
        spec: YAML file of the study.
        out: Folder of the study; null takes runs/study/NAME.
        jobs: Number of runs at a time; null takes as many as there are GPUs for, or 2 without GPUs.
        print_commands: Whether only one command line for each run is printed, for a scheduler.
        shared_only: Whether only the products that arms share are made.
        executor: Where runs are executed: in subprocesses here, or as tasks of a Ray cluster.
        gpus: Number of GPUs that each run has for itself, here a whole number; 0 shows every run all GPUs.
        records: Folder of the records of finished runs, which a repository can hold: each run is recorded there when it
            finishes, and one whose record stands there is not run again; null keeps none.
    """
    require_arguments(run, locals())
    spec = shipped.find(spec)
    study = StudySpec.read(spec)
    root = Path(out or f"runs/study/{study.name}")
    if print_commands:
        print_run_commands(study, Path(spec), root, records)
        return
    if executor == "ray":
        place = RayExecutor(gpus)
    elif gpus == int(gpus):
        place = SubprocessExecutor(int(gpus))
        jobs = jobs or place.room()
    else:
        raise InputError(f"--gpus is {gpus:g}; write a whole number, or --executor ray, which shares GPUs")
    jobs = jobs or 2
    if code := run_study(study, Path(spec), root, jobs, place, shared_only, records):
        sys.exit(code)


def gate(spec: str, out: str | None = None, jobs: Workers = 2, records: str | None = None) -> None:
    """Runs a study's oracle and null alone, on the gate's own seeds, and says whether the study can tell signals apart.

    The exit code is 1 if the oracle does not end three standard errors above its null. The same command resumes.

    Args:
        spec: YAML file of a study with a gate.
        out: Folder of the study; null takes runs/study/NAME. The gate's runs stand beside it, in a folder with _gate at
            the end of its name.
        jobs: Number of runs at a time.
        records: Folder of the records of finished runs, as for `study run`; null keeps none.
    """
    require_arguments(gate, locals())
    study = StudySpec.read(shipped.find(spec))
    own, folder = gate_study(study), gate_folder(Path(out or f"runs/study/{study.name}"))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, f"{own.name}.yaml")
        source.write_text(yaml.safe_dump(asdict(own), sort_keys=False, allow_unicode=True), encoding="utf-8")
        failed = run_study(own, source, folder, jobs, SubprocessExecutor(1), records=records)
    result = gate_result(read_numbers(StudyResults.read(folder)))
    print(result.said)
    if failed or not result.holds:
        sys.exit(1)


def report(folder: str) -> None:
    """Writes a study's report (report/report.html, report.md and tables), also of an unfinished study.

    Args:
        folder: Folder of the study.
    """
    from saerl_lightning.study.report.gather import write_report

    print(write_report(Path(folder)))


def publish(folder: str, to: str, unfinished: bool = False) -> None:
    """Writes the numbers of a study's runs as CSV files, with its settings; `study tables` needs only these.

    Args:
        folder: Folder of the study.
        to: Folder to write, such as docs/results/NAME; an earlier publication of the study there is replaced.
        unfinished: Whether runs may be missing; the tables then begin with UNFINISHED.
    """
    from saerl_lightning.study.report.publication import write_publication

    write_publication(Path(folder), Path(to), unfinished)
    print(to)


def tables(folder: str, page: str | None = None) -> None:
    """Makes a study's tables from its published CSV files; prints them as Markdown or writes them into a page.

    Args:
        folder: Folder that `study publish` wrote.
        page: Markdown file with the lines <!-- tables NAME --> and <!-- /tables NAME -->, where NAME is the folder's
            name; null prints the tables.
    """
    from saerl_lightning.study.report.publication import section, write_section

    if page is None:
        print(section(Path(folder), Path()), end="")
        return
    write_section(Path(folder), Path(page))
    print(page)


VERBS = {
    "gate": gate, "run": run, "report": report, "publish": publish, "tables": tables, "compare": compare, "causal": causal,
    "dashboard": dashboard,
}  # fmt: skip


def run_study(
    spec: StudySpec, source: Path, root: Path, jobs: int, executor: Executor, shared_only: bool = False,
    records: str | None = None,
) -> int:  # fmt: skip
    """Runs a study and returns the exit code: 0, or 1 if runs failed.

    Args:
        spec: Study to run.
        source: File that the study was read from.
        root: Folder of the study.
        jobs: Number of runs at a time.
        executor: Executor that runs the command lines.
        shared_only: Whether only the products that arms share are made.
        records: Folder of the records of finished runs; null keeps none.

    Raises:
        InputError: if the study can't be run, or the folder is another study's.
        RunStopped: if a shared product could not be made.
    """
    executor.check(jobs)
    with alone(root):
        arms = checked(spec, root)
        # Machines of a cluster may have a key that this machine lacks, so only local runs are checked.
        if isinstance(executor, SubprocessExecutor):
            for arm, config in arms.items():
                require_key(listed(config, "trainer.logger"), f"the arm '{arm}' has")
        kept = _claimed(spec, source, root, arms, records)
        results = StudyResults.read(root)
        print(plan_text(results, jobs, common_inputs(spec, arms)), flush=True)
        unfinished = {(run.arm, run.seed) for run in results.runs if run.state != "finished"}
        left = [run for run in planned_runs(spec, root, arms) if (run.arm, run.seed) in unfinished and not shared_only]
        with _interruptible(executor):
            make_shared(spec, root, executor, lambda text: print(text, flush=True), seeds_from_records(results))
            failed = _run_left(spec, root, left, jobs, executor, kept)
    print(summary(StudyResults.read(root), failed), flush=True)
    return 1 if failed else 0


def print_run_commands(spec: StudySpec, source: Path, root: Path, records: str | None = None) -> None:
    """Prints one command line for each run that has no record; `study run` and `study report` find these runs."""
    arms = checked(spec, root)
    with alone(root):
        _claimed(spec, source, root, arms, records)
    results = StudyResults.read(root)
    done, recorded = seeds_from_records(results), {(run.arm, run.seed) for run in results.runs if run.recorded}
    needed = [(stage, seed) for stage, seed in stage_products(spec) if not needless(spec, seed, done)]
    places = {product_name(stage, seed): product_path(spec, stage, seed or 0) for stage, seed in needed}
    if missing := [name for name, place in places.items() if not (root / "shared" / place).exists()]:
        print(
            f"first: {program()} study run {quote(str(source))} --out {quote(str(root))} --shared_only true "
            f"({', '.join(missing)})",
            file=sys.stderr,
        )
    print("\n".join(run.line for run in planned_runs(spec, root, arms) if (run.arm, run.seed) not in recorded))


def _claimed(
    spec: StudySpec, source: Path, root: Path, arms: dict[str, Resolved], records: str | None
) -> Records | None:
    """Checks the records before anything is written, claims the folder, and takes and writes records."""
    kept = None if records is None else Records.open(spec, root, arms, Path(records))
    claim(spec, source, root, digests(spec, arms), common_inputs(spec, arms))
    if kept is not None:
        kept.exchange()
    return kept


def checked(spec: StudySpec, root: Path) -> dict[str, Resolved]:
    """Checks a study by itself and against its folder; returns the configurations of its arms.

    Raises:
        InputError: naming the first fault.
    """
    check_folder(spec, root)
    require_gate(spec, root)
    resolved = resolve(spec, root)
    check_digests(digests(spec, resolved), root)
    check_runs(spec, root, resolved)
    refuse_trained_questions(resolved)
    return resolved


def _run_left(
    spec: StudySpec, root: Path, left: Sequence[PlannedRun], jobs: int, executor: Executor,
    kept: Records | None = None,
) -> list[RunRecord]:  # fmt: skip
    """Runs the unfinished runs under a progress bar; returns those that failed."""
    failed: list[RunRecord] = []
    with Bar(total=len(left), desc="runs", unit="run", disable=not left) as bar:

        def ended(record: RunRecord) -> None:
            note_software(root)
            record = record if kept is None else kept.write(record)
            if record.state == "failed":
                failed.append(record)
                bar.write(failure(record), file=sys.stdout)
            bar.set_postfix_str(progress(StudyResults.read(root).runs, jobs), refresh=False)
            bar.update()

        before = [] if kept is None else [kept.take]
        StudyExecution(spec, executor, jobs, *before).run(left, ended)
    return failed


@contextlib.contextmanager
def _interruptible(executor: Executor) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into an orderly end: child processes end, records are correct, the exit code is 130."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        executor.stop()  # a shared stage is made in this thread, which waits for its process
        print("\ninterrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)
