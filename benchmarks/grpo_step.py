"""Seconds and memory of a GRPO step beside TRL's: `benchmarks/grpo_step.py`; `--ablate` for what each switch buys.

Both sides train the same policy on the same prompts, in float32, on one thread, 8 completions of 64 tokens a prompt, all
rows of a step in one batch. Ours is the command that a user types, with the shipped baseline configuration: Lightning,
datamodule, CSV log, progress bar and mismatch guard included. TRL's side is `peers/trl_step.py`. The two processes live
side by side and take their steps in turn; the first step of each warms up, medians are taken over the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from step_ablation import AblationRow, ablate, ablation_table
from step_goals import GOALS, Goal
from step_sides import SHOWN, Medians, in_lockstep, own_command, trl_command
from transformers.utils.logging import disable_progress_bar
from workload import PROMPT_LENGTHS, PROMPTS_A_STEP, Workload, build_policy, write_prompts

FLAT_LENGTH = 128  # prompt tokens of the default run's row with flat groups
FLAT_SHARE = 0.5
ABLATION_NOTE = """A setting is compared with the `nothing` of its own section only. `uneven` work has every other prompt half
as long, micro-batches of half a step, completions in parts of one prompt, and a grader that waits; in the other sections
all rows are equally long and come in one part, so that sorting and overlapped grading would have nothing to do."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: Workload
    trl: Medians
    ours: Medians

    @property
    def name(self) -> str:
        """Which row this is."""
        special = f", {self.work.title}" if self.work.zero_variance else ""
        return f"{self.work.model} at {self.work.prompt_tokens}{special}"

    @property
    def goal(self) -> Goal | None:
        """What it must reach; rows with flat groups have no goal."""
        return None if self.work.zero_variance else GOALS.get((self.work.model, self.work.prompt_tokens))

    @property
    def ratio(self) -> float:
        """How many of our steps fit into one of TRL's."""
        return self.trl.seconds / self.ours.seconds

    @property
    def training_ratio(self) -> float:
        """TRL's seconds of forward and backward over ours."""
        return self.trl.shown("forward+backward") / self.ours.shown("forward+backward")

    @property
    def memory_ratio(self) -> float:
        """Our peak memory as a share of TRL's."""
        return self.ours.peak_gb / self.trl.peak_gb

    @property
    def missed(self) -> list[str]:
        """Goals this row does not reach."""
        bounds = self.goal.missed(self.ratio, self.memory_ratio, self.ours.untimed) if self.goal else []
        return [f"{self.name}: {bound}" for bound in bounds]


def plan(models: Sequence[str], lengths: Sequence[int], steps: int, zero_variance: float | None) -> Iterator[Workload]:
    """Yields the rows to measure; where no share of flat groups is asked for, a row with half of them a model."""
    for model in models:
        even = [Workload(model, PROMPTS_A_STEP[model], n, steps, zero_variance=zero_variance or 0.0) for n in lengths]
        yield from even
        if zero_variance is None:
            yield from (replace(w, zero_variance=FLAT_SHARE) for w in even if w.prompt_tokens == FLAT_LENGTH)


def measure(work: Workload, policy: Path, data: str | None, folder: Path) -> Row:
    """Runs both sides in lockstep."""
    folder.mkdir()
    prompts = write_prompts(folder / "prompts.jsonl", policy, data, work)
    commands = {
        "TRL": trl_command(work, policy, prompts, folder / "trl"),
        "ours": own_command(work, policy, prompts, folder / "run"),
    }
    done = in_lockstep(work, commands, folder)
    return Row(work, done["TRL"], done["ours"])


def table(rows: Sequence[Row]) -> Table:
    """Seconds as TRL / ours; memory in GB; overhead is the share of our step outside the algorithm's phases."""
    result = Table(title="a GRPO step, medians, TRL / ours (seconds; peak memory in GB)")
    columns = ("step", "ratio", "goal, aim", "reached", *SHOWN, "rest", "peak", "ours/TRL", "goal", "overhead")
    for column in ("model", "prompt", *columns):
        result.add_column(column, justify="left" if column in ("model", "reached") else "right", no_wrap=True)
    for row in rows:
        trl, ours, goal = row.trl, row.ours, row.goal
        phases = [f"{trl.shown(column):.2f} / {ours.shown(column):.2f}" for column in SHOWN]
        result.add_row(
            row.work.model,
            f"{row.work.prompt_tokens}" + (f", {row.work.title}" if row.work.zero_variance else ""),
            f"{trl.seconds:.2f} / {ours.seconds:.2f}",
            f"{row.ratio:.2f}",
            f"{goal.ratio}, {goal.aim}" if goal else "",
            goal.reached(row.ratio) if goal else "",
            *phases,
            f"{trl.rest:.2f} / {ours.rest:.2f}",
            f"{trl.peak_gb:.2f} / {ours.peak_gb:.2f}",
            f"{row.memory_ratio:.2f}",
            f"{goal.memory:.2f}" if goal else "",
            f"{ours.untimed:.1%}",
        )
    return result


def skips(rows: Sequence[Row]) -> Iterator[str]:
    """Says what flat groups save beside the same row without them, as a ratio to TRL, which computes them all."""
    full = {(row.work.model, row.work.prompt_tokens): row for row in rows if not row.work.zero_variance}
    for row in rows:
        base = full.get((row.work.model, row.work.prompt_tokens)) if row.work.zero_variance else None
        if base:
            yield (
                f"{row.name}: forward+backward is {row.training_ratio:.2f} times as fast as TRL's, "
                f"{base.training_ratio:.2f} times without flat groups"
            )


def write(file: Path | None, rows: Sequence[Row] | Sequence[AblationRow]) -> None:
    """Writes the rows so far as JSON, ratios included."""
    if file:
        derived = [{"ratio": row.ratio, "memory_ratio": row.memory_ratio, "overhead": row.ours.untimed} for row in rows]
        both = [asdict(row) | more for row, more in zip(rows, derived, strict=True)]
        file.write_text(json.dumps(both, indent=1) + "\n")


def compare(given: argparse.Namespace, works: Sequence[Workload], policies: dict[str, Path], folder: Path) -> None:
    """Measures the rows, prints the table, and names the goals that were missed."""
    rows: list[Row] = []
    for number, work in enumerate(works):
        rows.append(measure(work, policies[work.model], given.data, folder / f"row-{number}"))
        write(given.out, rows)
    Console(width=240).print(table(rows))
    for line in skips(rows):
        print(line)
    for missed in (goal for row in rows for goal in row.missed):
        print(f"goal missed: {missed}")


def take_away(given: argparse.Namespace, works: Sequence[Workload], policies: dict[str, Path], folder: Path) -> None:
    """Measures every switch off in turn, and prints the table."""
    rows: list[AblationRow] = []
    for number, work in enumerate(works):
        place, share = folder / f"ablation-{number}", given.zero_variance or FLAT_SHARE
        for done in ablate(work, policies[work.model], given.data, place, share):
            rows += done
            write(given.out, rows)
    Console(width=240).print(ablation_table(rows))
    print(ABLATION_NOTE)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl"], default="trl", help="whom to compare with")
    parser.add_argument("--models", nargs="+", choices=list(PROMPTS_A_STEP), default=list(PROMPTS_A_STEP))
    parser.add_argument("--prompt-lens", nargs="+", type=int, help="tokens; 64 128 256, or 128 with --ablate")
    parser.add_argument("--steps", type=int, default=5, help="counted steps a side; one more warms up")
    parser.add_argument("--quick", action="store_true", help="one counted step, to try things")
    parser.add_argument("--zero-variance", type=float, help="share of a step's groups that earn one constant reward; by "
                        "default none, and one more row a model with half of them")  # fmt: skip
    parser.add_argument("--ablate", action="store_true", help="our side only, every switch off in turn")
    parser.add_argument("--data", help="JSON lines with `prompt` and `answer`; reasoning-gym arithmetic by default")
    parser.add_argument("--out", type=Path, help="file that gets the rows as JSON, after every row")
    given = parser.parse_args()
    given.data = str(Path(given.data).resolve()) if given.data else None
    return given


def main() -> None:
    """Compares with the peer, or takes the switches away."""
    given = parse()
    disable_progress_bar()
    lengths = given.prompt_lens or ((FLAT_LENGTH,) if given.ablate else PROMPT_LENGTHS)
    steps, share = 1 if given.quick else given.steps, 0.0 if given.ablate else given.zero_variance
    works = list(plan(given.models, lengths, steps, share))
    with tempfile.TemporaryDirectory() as folder:
        policies = {model: build_policy(model, Path(folder)) for model in given.models}
        (take_away if given.ablate else compare)(given, works, policies, Path(folder))


if __name__ == "__main__":
    main()
