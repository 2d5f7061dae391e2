"""The command lines of the step benchmark's sides, and what is kept of their steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lockstep import Side, StepReport
from workload import ROOT, Workload

BENCHMARKS = Path(__file__).resolve().parent
# Fusing the weights for decoding is a price of generation; a forward for the old log-probabilities is one of training.
SHOWN = {
    "generate": ["generate", "sync"],
    "score": ["score"],
    "forward+backward": ["old", "forward", "backward"],
    "optimizer": ["optimizer"],
}
GRADING = {"tiny": 0.01, "smollm2": 0.25}  # seconds a completion in uneven work: about as long as generating takes


@dataclass(frozen=True)
class Medians:
    """One side of a row, medians over the counted steps."""

    seconds: float
    phases: dict[str, float]
    start_gb: float
    peak_gb: float

    @classmethod
    def over(cls, reports: Sequence[StepReport]) -> Medians:
        """Medians of each number by itself; the peak is the last, which is the highest."""
        phases = {name: median(r.phases.get(name, 0.0) for r in reports) for name in reports[-1].phases}
        return cls(median(r.seconds for r in reports), phases, reports[-1].start_gb, reports[-1].peak_gb)

    @property
    def untimed(self) -> float:
        """Share of the step that belongs to no phase of the algorithm."""
        return 1 - sum(self.phases.values()) / self.seconds

    def shown(self, column: str) -> float:
        """Seconds of the phases that a column adds up."""
        return sum(self.phases.get(name, 0.0) for name in SHOWN[column])

    @property
    def rest(self) -> float:
        """Seconds that no column shows."""
        return self.seconds - sum(map(self.shown, SHOWN))

    @property
    def grown_gb(self) -> float:
        """Peak memory beyond what was there when the first step began."""
        return self.peak_gb - self.start_gb


def in_lockstep(work: Workload, commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Medians]:
    """Runs the sides in turn, the order reversed every other step; only one of them computes at a time.

    Args:
        work: what a step is made of, and how many count.
        commands: a Python command line by the side's name.
        folder: gets a log of each side.

    Returns:
        Medians over the counted steps, by the side's name.
    """
    reports: dict[str, list[StepReport]] = {name: [] for name in commands}
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Side(name, command, ROOT, folder / f"{name}.log", BENCHMARKS))
            for name, command in commands.items()
        ]
        for step in range(work.steps + 1):
            for side in sides if step % 2 == 0 else reversed(sides):
                reports[side.name].append(side.step())
            say_step(work, step, {name: done[-1] for name, done in reports.items()})
    return {name: Medians.over(done[1:]) for name, done in reports.items()}


def say_step(work: Workload, step: int, reports: Mapping[str, StepReport]) -> None:
    """Prints a progress line, and refuses steps in which a side did other work."""
    for name, report in reports.items():
        if report.completion_tokens != work.completion_tokens:
            raise SystemExit(
                f"{name}'s completions have {report.completion_tokens} tokens, not {work.completion_tokens}"
            )
        if not math.isclose(report.zero_variance, work.flat_groups, abs_tol=1e-4):
            raise SystemExit(f"{name} saw {report.zero_variance:.0%} flat groups, not {work.flat_groups:.0%}")
    times = ", ".join(f"{name} {report.seconds:.2f} s" for name, report in reports.items())
    counted = f"step {step}/{work.steps}" if step else "warm-up"
    what = (
        f"{work.model}, {work.prompts} x {work.group_size} x ({work.prompt_tokens} + {work.completion_tokens}) tokens"
    )
    print(f"{what}, {counted}: {times}", flush=True)


def own_command(work: Workload, policy: Path, prompts: Path, run_dir: Path, flags: Sequence[str] = ()) -> list[str]:
    """What a user types, with the gate between steps and the benchmark's reward; `flags` come last and win."""
    gate = {"class_path": "own_parts.StepGate", "init_args": {"reports": "{reports}"}}
    grading = GRADING[work.model] if work.uneven else 0.0
    reward = {"class_path": "own_parts.TextReward", "init_args": {"seconds": grading}}
    return [
        *("main.py", "fit", "-c", "configs/grpo.yaml", "-c", "configs/engine/hf.yaml"),
        f"--run_dir={run_dir}",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={work.planned_steps}",
        f"--trainer.callbacks+={json.dumps(gate)}",
        f"--model.policy.path={policy}",
        f"--model.rewards={json.dumps([reward])}",
        f"--model.sampling.group_size={work.group_size}",
        f"--model.sampling.max_tokens={work.completion_tokens}",
        f"--model.micro_tokens={work.micro_tokens}",
        *([f"--model.engine.max_rows={work.group_size}"] if work.uneven else []),
        f"--data.train={prompts}",
        f"--data.batch_size={work.prompts}",
        "--data.shuffle_seed=null",
        f"--data.chat.max_prompt_tokens={work.prompt_tokens}",
        *flags,
    ]


def trl_command(work: Workload, policy: Path, prompts: Path, folder: Path) -> list[str]:
    """The same work for the peer."""
    return [
        *("-m", "peers.trl_step", "--reports={reports}"),
        f"--model={policy}",
        f"--data={prompts}",
        f"--folder={folder}",
        f"--steps={work.planned_steps}",
        f"--prompts={work.prompts}",
        f"--group-size={work.group_size}",
        f"--completion-tokens={work.completion_tokens}",
    ]
