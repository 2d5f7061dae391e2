"""Seconds and memory of a GRPO step beside TRL's: `python benchmarks/grpo_step.py`.

Both sides train the same policy on the same prompts, in float32, on one thread, 8 completions of 64 tokens a prompt. Ours
is the command that a user types, with the shipped baseline configuration: Lightning, datamodule, CSV log, progress bar
and mismatch guard included. TRL's side is `peers/trl_step.py`. The two processes live side by side and take their steps in
turn; the first step of each warms up, medians are taken over the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from lockstep import Side, StepReport
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar
from workload import PROMPT_LENGTHS, PROMPTS_A_STEP, ROOT, Workload, build_policy, write_prompts

BENCHMARKS = Path(__file__).resolve().parent
SHOWN = {
    "generate": ["generate"],
    "score": ["score"],
    "forward+backward": ["forward", "backward"],
    "optimizer": ["optimizer"],
}
GOALS = {"tiny": 1.0, "smollm2": 1.2}  # least ratio of step times, TRL / ours


@dataclass(frozen=True)
class Medians:
    """One side of a row, medians over the counted steps."""

    seconds: float
    phases: dict[str, float]
    peak_gb: float

    @classmethod
    def over(cls, reports: Sequence[StepReport]) -> Medians:
        """Medians of each number by itself; the peak is the last, which is the highest."""
        phases = {name: median(r.phases[name] for r in reports) for name in reports[-1].phases}
        return cls(median(r.seconds for r in reports), phases, reports[-1].peak_gb)

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


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    prompt_tokens: int
    steps: int
    trl: Medians
    ours: Medians

    @property
    def ratio(self) -> float:
        """How many of our steps fit into one of TRL's."""
        return self.trl.seconds / self.ours.seconds

    @property
    def memory_ratio(self) -> float:
        """Our peak memory as a share of TRL's."""
        return self.ours.peak_gb / self.trl.peak_gb

    @property
    def missed(self) -> list[str]:
        """Goals this row does not reach."""
        goals = {
            f"ratio {self.ratio:.2f} < {GOALS[self.model]}": self.ratio < GOALS[self.model],
            f"memory ratio {self.memory_ratio:.2f} > 1.00": self.memory_ratio > 1.0,
            f"overhead {self.ours.untimed:.1%} > 3.0%": self.model == "smollm2" and self.ours.untimed > 0.03,
        }
        return [f"{self.model} at {self.prompt_tokens}: {goal}" for goal, is_missed in goals.items() if is_missed]


def measure(work: Workload, policy: Path, data: str | None, folder: Path) -> Row:
    """Runs both sides in turn, the order reversed every other step."""
    folder.mkdir()
    prompts = write_prompts(folder / "prompts.jsonl", policy, data, work)
    commands = {"TRL": trl_command(work, policy, prompts, folder), "ours": own_command(work, policy, prompts, folder)}
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
    trl, ours = (Medians.over(done[1:]) for done in reports.values())
    return Row(work.model, work.prompt_tokens, work.steps, trl, ours)


def say_step(work: Workload, step: int, reports: dict[str, StepReport]) -> None:
    """Prints a progress line, and refuses steps in which the sides did not do the same work."""
    for name, report in reports.items():
        if report.completion_tokens != work.completion_tokens:
            raise SystemExit(
                f"{name}'s completions have {report.completion_tokens} tokens, not {work.completion_tokens}"
            )
    times = ", ".join(f"{name} {report.seconds:.2f} s" for name, report in reports.items())
    counted = f"step {step}/{work.steps}" if step else "warm-up"
    print(f"{work.model}, prompts of {work.prompt_tokens} tokens, {counted}: {times}", flush=True)


def own_command(work: Workload, policy: Path, prompts: Path, folder: Path) -> list[str]:
    """What a user types, with the gate between steps and the benchmark's reward."""
    gate = {"class_path": "own_parts.StepGate", "init_args": {"reports": "{reports}"}}
    return [
        *("main.py", "fit", "-c", "configs/grpo.yaml", "-c", "configs/engine/hf.yaml"),
        f"--run_dir={folder / 'run'}",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={work.planned_steps}",
        f"--trainer.callbacks+={json.dumps(gate)}",
        f"--model.policy.path={policy}",
        '--model.rewards=[{"class_path": "own_parts.TextReward"}]',
        f"--model.sampling.group_size={work.group_size}",
        f"--model.sampling.max_tokens={work.completion_tokens}",
        f"--data.train={prompts}",
        f"--data.batch_size={work.prompts}",
        "--data.shuffle_seed=null",
        f"--data.chat.max_prompt_tokens={work.prompt_tokens}",
    ]


def trl_command(work: Workload, policy: Path, prompts: Path, folder: Path) -> list[str]:
    """The same work for the peer."""
    return [
        *("-m", "peers.trl_step", "--reports={reports}"),
        f"--model={policy}",
        f"--data={prompts}",
        f"--folder={folder / 'trl'}",
        f"--steps={work.planned_steps}",
        f"--prompts={work.prompts}",
        f"--group-size={work.group_size}",
        f"--completion-tokens={work.completion_tokens}",
    ]


def table(rows: Sequence[Row]) -> Table:
    """Seconds as TRL / ours; memory in GB; overhead is the share of our step outside the algorithm's phases."""
    result = Table(title="a GRPO step, medians, TRL / ours (seconds; peak memory in GB)")
    columns = ("model", "prompt", "step", "ratio", *SHOWN, "rest", "peak", "ours/TRL", "overhead")
    for column in columns:
        result.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        trl, ours = row.trl, row.ours
        phases = [f"{trl.shown(column):.2f} / {ours.shown(column):.2f}" for column in SHOWN]
        result.add_row(
            row.model,
            str(row.prompt_tokens),
            f"{trl.seconds:.2f} / {ours.seconds:.2f}",
            f"{row.ratio:.2f}",
            *phases,
            f"{trl.rest:.2f} / {ours.rest:.2f}",
            f"{trl.peak_gb:.2f} / {ours.peak_gb:.2f}",
            f"{row.memory_ratio:.2f}",
            f"{ours.untimed:.1%}",
        )
    return result


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Writes the rows with their ratios as JSON."""
    derived = [{"ratio": r.ratio, "memory_ratio": r.memory_ratio, "overhead": r.ours.untimed} for r in rows]
    file.write_text(json.dumps([asdict(row) | more for row, more in zip(rows, derived, strict=True)], indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PROMPTS_A_STEP), default=list(PROMPTS_A_STEP))
    parser.add_argument("--prompt-lens", nargs="+", type=int, help="tokens; 64 128 256 for tiny, 128 for smollm2")
    parser.add_argument("--steps", type=int, default=5, help="counted steps a side; one more warms up")
    parser.add_argument("--quick", action="store_true", help="one counted step, to try things")
    parser.add_argument("--data", help="JSON lines with `prompt` and `answer`; reasoning-gym arithmetic by default")
    parser.add_argument("--out", type=Path, help="file that gets the rows as JSON")
    return parser.parse_args()


def main() -> None:
    """Measures every asked-for row, prints the table, and names the goals that were missed."""
    given = parse()
    disable_progress_bar()
    data = str(Path(given.data).resolve()) if given.data else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            policy = build_policy(model, Path(folder))
            for length in given.prompt_lens or PROMPT_LENGTHS[model]:
                work = Workload(model, length, steps=1 if given.quick else given.steps)
                rows.append(measure(work, policy, data, Path(folder, f"{model}-{length}")))
    Console(width=170).print(table(rows))
    for missed in (goal for row in rows for goal in row.missed):
        print(f"goal missed: {missed}")
    if given.out:
        write_rows(given.out, rows)


if __name__ == "__main__":
    main()
