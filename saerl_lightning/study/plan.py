"""Plans a study: one command line for each run, what is done already, and how long the rest will take.

Pure functions: they build texts and read records, and start nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lightning.errors import program
from saerl_lightning.progress import duration
from saerl_lightning.study.results import RunResult, StudyResults, run_folder
from saerl_lightning.study.run_record import RunRecord
from saerl_lightning.study.seeding import (
    Config,
    common_parts,
    product_name,
    product_path,
    seed_flags,
    stage_products,
    with_paths_of,
)
from saerl_lightning.study.spec import Budget, Stage, StudySpec

# Flags that the study sets after an arm's flags. An arm's own values would have no effect.
OWN_FLAGS = (
    "run_dir",
    "overwrite",
    "ckpt_path",
    "seed_everything",
    "data.shuffle_seed",
    "model.sampling.seed",
    "trainer.max_steps",
)
PROGRAM = [sys.executable, "-m", "saerl_lightning"]


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study: its folder, its command line, and its environment variables."""

    arm: str
    seed: int
    folder: Path
    command: list[str]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        """The run as one line for a shell or a scheduler; it resumes from the run's last checkpoint if there is one."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["env", *settings, *self.command])


def planned_runs(spec: StudySpec, root: Path, arms: Mapping[str, Config]) -> list[PlannedRun]:
    """Lists every run, all arms of the first seed first, so that an interrupted study has balanced arms.

    Args:
        spec: Study that is planned.
        root: Folder of the study.
        arms: Configuration of each arm, in which seeds are found.
    """
    return [_planned(spec, root, arm, seed, arms[arm]) for seed in spec.seeds for arm in spec.arms]


def _planned(spec: StudySpec, root: Path, arm: str, seed: int, config: Config) -> PlannedRun:
    folder = run_folder(root, arm, seed)
    own = [
        *budget_flags(spec.budget),
        f"--run_dir={folder}",
        "--ckpt_path=last",  # the first start has no checkpoint and begins anew
    ]
    arguments = [*arm_arguments(spec, arm), *seed_flags(config, spec, seed)]
    given = [with_paths_of(word, spec, str(root / "shared"), seed) for word in arguments]
    wandb = {
        "WANDB_RUN_GROUP": spec.name,
        "WANDB_JOB_TYPE": arm,  # W&B can group by job type, but not by one of several tags
        "WANDB_NAME": f"{arm}/seed-{seed}",
        "WANDB_TAGS": f"{arm},seed-{seed}",
    }
    return PlannedRun(arm, seed, folder, [*PROGRAM, *given, *own], wandb)


def arm_arguments(spec: StudySpec, arm: str) -> list[str]:
    """Arguments of `fit` that all runs of an arm share, with paths as in the study's file."""
    configs = [part for config in [*spec.base, *spec.arms[arm].configs] for part in ("-c", config)]
    flags = [*spec.flags, *spec.arms[arm].flags, "--trainer.callbacks+=QuestionTable"]
    return ["fit", *configs, *flags]


def budget_flags(budget: Budget) -> list[str]:
    """Flags that end a run when its budget is spent."""
    if budget.steps is not None:
        return [f"--trainer.max_steps={budget.steps}"]
    stop = {"class_path": "TokenBudget", "init_args": {"tokens": budget.generated_tokens}}
    return ["--trainer.max_steps=-1", f"--trainer.callbacks+={json.dumps(stop)}"]


def plan_text(results: StudyResults, jobs: int, inputs: Sequence[str] = ()) -> str:
    """Describes the plan: arms, seeds, shared products, finished runs, and the time the rest will take.

    Args:
        results: Study with the runs that are done.
        jobs: Number of runs at a time.
        inputs: Weights and labels that all seeds read from one place.
    """
    spec, runs = results.spec, results.runs
    width = max(len(arm) for arm in spec.arms)
    lines = [
        f"study {spec.name}: {len(spec.arms)} arms x {len(spec.seeds)} seeds = {len(runs)} runs of {_budget(spec.budget)}",
        f"seeds: {', '.join(str(seed) for seed in spec.seeds)}",
        f"metric: {spec.metric}, against {spec.baseline}; primary: {', '.join(_primary(spec)) or 'none'}",
        "arms:",
        *(f"  {arm:<{width}}  {_done(results, arm)}  {spec.arms[arm].description}".rstrip() for arm in spec.arms),
    ]
    if spec.shared:
        lines.append("shared by the arms, made once a seed, or once for all seeds:")
        lines += [
            f"  {product_name(stage, seed)}: {_stage(results, stage, seed)}" for stage, seed in stage_products(spec)
        ]
    lines.append(f"common to all seeds: {', '.join(common_parts(spec, inputs))}")
    return "\n".join([*lines, _rest(runs, jobs)])


def _primary(spec: StudySpec) -> list[str]:
    return [*spec.primary, *(f"{first} - {second}" for first, second in spec.contrasts)]


def _budget(budget: Budget) -> str:
    return f"{budget.steps} steps" if budget.steps is not None else f"{budget.generated_tokens} generated tokens"


def _done(results: StudyResults, arm: str) -> str:
    own = results.finished(arm)
    taken = [str(run.seed) for run in own if run.recorded]
    return f"{len(own)}/{len(results.spec.seeds)} finished" + (
        f" (seeds {', '.join(taken)} from records)" if taken else ""
    )


def _stage(results: StudyResults, stage: Stage, seed: int | None) -> str:
    place = results.folder / "shared" / product_path(results.spec, stage, seed or 0)
    reads = [run for run in results.runs if seed in (None, run.seed)]
    missing = "not needed: its runs are recorded" if all(run.recorded for run in reads) else "to be made"
    return f"{place} ({'there' if place.exists() else missing})"


def _rest(runs: Sequence[RunResult], jobs: int) -> str:
    left = [run for run in runs if run.state != "finished"]
    failed = sum(run.state == "failed" for run in left)
    again = f", {failed} of them failed before" if failed else ""
    seconds = estimate(runs, jobs)
    takes = "its time is known once a run has finished" if seconds is None else f"about {duration(seconds)}"
    return f"to run: {len(left)}{again}; {takes} with {jobs} at a time" if left else "to run: nothing"


def estimate(runs: Sequence[RunResult], jobs: int) -> float | None:
    """Estimates the seconds that unfinished runs will take from the mean of finished ones; None if there are none.

    For an arm without a finished run the mean over all arms is taken.
    """
    taken = {arm: [run.seconds for run in runs if run.arm == arm and run.state == "finished"] for arm in _arms(runs)}
    every = [seconds for arm in taken.values() for seconds in arm]
    if not every:
        return None
    left = [taken[run.arm] or every for run in runs if run.state != "finished"]
    return sum(sum(known) / len(known) for known in left) / max(1, min(jobs, len(left)))


def _arms(runs: Sequence[RunResult]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def progress(runs: Sequence[RunResult], jobs: int) -> str:
    """Describes how far the study is and how long the rest takes."""
    states = [run.state for run in runs]
    seconds = estimate(runs, jobs)
    counts = [f"{states.count(state)} {state}" for state in ("finished", "failed") if state in states]
    return ", ".join([*counts, *([] if seconds is None else [f"about {duration(seconds)} left"])])


def failure(record: RunRecord) -> str:
    """Describes a failed run, with the last lines of its log."""
    words = "\n".join(f"    {line}" for line in record.error.splitlines())
    return f"failed: {record.arm}, seed {record.seed}, with exit code {record.exit}:\n{words}"


def summary(results: StudyResults, failed: Sequence[RunRecord]) -> str:
    """Says how many runs are finished, which failed, and how the report is made."""
    finished = sum(run.state == "finished" for run in results.runs)
    lines = [f"{finished} of {len(results.runs)} runs are finished: {results.folder}"]
    lines += [
        f"  failed: {each.arm}, seed {each.seed} (log in {results.folder / each.arm / f'seed-{each.seed}'})"
        for each in failed
    ]
    more = "; the same command tries the failed ones again" if failed else ""
    return "\n".join([*lines, f"report: {program()} study report {shlex.quote(str(results.folder))}{more}"])
