"""What a study will run: one command line a run, what is done already, and what the rest will take.

Pure: it composes texts and looks at records, and starts nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lightning.study.luck import Config, label, makings, placed, product, seed_flags
from saerl_lightning.study.results import RunResult, StudyResults, run_folder
from saerl_lightning.study.spec import Budget, Stage, StudySpec

OWN_FLAGS = (  # that every run gets behind its arm's, which would have no effect there
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
    """A run of the study: its place, its command line, and what it adds to the environment."""

    arm: str
    seed: int
    folder: Path
    command: list[str]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        """One line for a shell or a scheduler; it goes on from the run's last checkpoint where there is one."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["env", *settings, *self.command])


def planned_runs(spec: StudySpec, root: Path, arms: Mapping[str, Config]) -> list[PlannedRun]:
    """Every run in order: all arms of the first seed, then of the next, so that a killed study is balanced.

    Args:
        spec: the study.
        root: its folder.
        arms: each arm's configuration, which tells what it draws.
    """
    return [_planned(spec, root, arm, seed, arms[arm]) for seed in spec.seeds for arm in spec.arms]


def _planned(spec: StudySpec, root: Path, arm: str, seed: int, config: Config) -> PlannedRun:
    folder = run_folder(root, arm, seed)
    own = [
        *budget_flags(spec.budget),
        f"--run_dir={folder}",
        "--ckpt_path=last",  # the first start has none, and says so
    ]
    words = [*arm_arguments(spec, arm), *seed_flags(config, spec, seed)]
    given = [placed(word, spec, str(root / "shared"), seed) for word in words]
    wandb = {
        "WANDB_RUN_GROUP": spec.name,
        "WANDB_JOB_TYPE": arm,  # what W&B can group by; it can't by one of several tags
        "WANDB_NAME": f"{arm}/seed-{seed}",
        "WANDB_TAGS": f"{arm},seed-{seed}",
    }
    return PlannedRun(arm, seed, folder, [*PROGRAM, *given, *own], wandb)


def arm_arguments(spec: StudySpec, arm: str) -> list[str]:
    """What makes an arm: the part of the command line that all its runs share, with places as in the study's file."""
    configs = [part for config in [*spec.base, *spec.arms[arm].configs] for part in ("-c", config)]
    flags = [*spec.flags, *spec.arms[arm].flags, "--trainer.callbacks+=QuestionTable"]
    return ["fit", *configs, *flags]


def budget_flags(budget: Budget) -> list[str]:
    """The flags that end a run when the budget is spent."""
    if budget.steps is not None:
        return [f"--trainer.max_steps={budget.steps}"]
    stop = {"class_path": "TokenBudget", "init_args": {"tokens": budget.generated_tokens}}
    return ["--trainer.max_steps=-1", f"--trainer.callbacks+={json.dumps(stop)}"]


def plan_text(results: StudyResults, jobs: int) -> str:
    """The plan in words: arms, seeds, what is shared, what is done, what the rest will take."""
    spec, runs = results.spec, results.runs
    width = max(len(arm) for arm in spec.arms)
    lines = [
        f"study {spec.name}: {len(spec.arms)} arms x {len(spec.seeds)} seeds = {len(runs)} runs of {_budget(spec.budget)}",
        f"seeds: {', '.join(str(seed) for seed in spec.seeds)}",
        f"metric: {spec.metric}, against {spec.baseline}; primary: {', '.join(spec.primary) or 'none'}",
        "arms:",
        *(f"  {arm:<{width}}  {_done(results, arm)}  {spec.arms[arm].description}".rstrip() for arm in spec.arms),
    ]
    if spec.shared:
        lines.append("shared by the arms, made once a seed, or once for all seeds:")
        lines += [f"  {label(stage, seed)}: {_stage(results, stage, seed)}" for stage, seed in makings(spec)]
    lines.append(f"common to all seeds: {', '.join(['the pool and the questions', *spec.share])}")
    return "\n".join([*lines, _rest(runs, jobs)])


def _budget(budget: Budget) -> str:
    return f"{budget.steps} steps" if budget.steps is not None else f"{budget.generated_tokens} generated tokens"


def _done(results: StudyResults, arm: str) -> str:
    return f"{len(results.finished(arm))}/{len(results.spec.seeds)} finished"


def _stage(results: StudyResults, stage: Stage, seed: int | None) -> str:
    place = results.folder / "shared" / product(results.spec, stage, seed or 0)
    return f"{place} ({'there' if place.exists() else 'to be made'})"


def _rest(runs: Sequence[RunResult], jobs: int) -> str:
    left = [run for run in runs if run.state != "finished"]
    failed = sum(run.state == "failed" for run in left)
    again = f", {failed} of them failed before" if failed else ""
    seconds = estimate(runs, jobs)
    takes = "its time is known once a run has finished" if seconds is None else f"about {duration(seconds)}"
    return f"to run: {len(left)}{again}; {takes} with {jobs} at a time" if left else "to run: nothing"


def estimate(runs: Sequence[RunResult], jobs: int) -> float | None:
    """Seconds that the unfinished runs will take, from the finished ones' mean; None where none has finished.

    An arm without a finished run counts with the mean of all.
    """
    taken = {arm: [run.seconds for run in runs if run.arm == arm and run.state == "finished"] for arm in _arms(runs)}
    every = [seconds for arm in taken.values() for seconds in arm]
    if not every:
        return None
    left = [taken[run.arm] or every for run in runs if run.state != "finished"]
    return sum(sum(known) / len(known) for known in left) / max(1, min(jobs, len(left)))


def _arms(runs: Sequence[RunResult]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def duration(seconds: float) -> str:
    """Seconds in the unit that people think in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
