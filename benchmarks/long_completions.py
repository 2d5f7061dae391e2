"""How a GRPO step grows with its completions beside TRL's: `benchmarks/long_completions.py`.

The tiny policy, 2 prompts of 64 tokens a step: completions grow at a group of 8, then groups grow at completions of 256.
All rows of a step go through in one batch on both sides, in lockstep, as in `grpo_step.py`. Memory is what the process
grew by since its first step began, so that interpreter, libraries and weights drop out. The slopes are least squares over
each series; a row that is in both is measured once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression

from rich.console import Console
from rich.table import Table
from step_sides import Medians, in_lockstep, own_command, trl_command
from transformers.utils.logging import disable_progress_bar
from workload import Workload, build_policy, write_prompts

MODEL = "tiny"
PROMPT_TOKENS = 64
GROUP_SIZE = 8  # while completions grow
COMPLETION_TOKENS = 256  # while groups grow
MEMORY_SHARE = 0.7  # of the free memory, that TRL may be expected to take
MEASURES: dict[str, Callable[[Medians], float]] = {
    "s": lambda side: side.seconds,
    "forward+backward s": lambda side: side.shown("forward+backward"),
    "MB": lambda side: 1000 * side.grown_gb,
}


@dataclass(frozen=True)
class Row:
    """One step size, measured; TRL's side is null where it was left out."""

    work: Workload
    trl: Medians | None
    ours: Medians

    def side(self, name: str) -> Medians | None:
        """The numbers of "TRL" or "ours"."""
        return self.trl if name == "TRL" else self.ours


def plan(completions: Sequence[int], groups: Sequence[int], prompts: int, steps: int) -> list[Workload]:
    """The step sizes of both series, each once, the smallest first."""
    sizes = {(GROUP_SIZE, length) for length in completions} | {(group, COMPLETION_TOKENS) for group in groups}
    works = [Workload(MODEL, prompts, PROMPT_TOKENS, steps, group, length) for group, length in sizes]
    return sorted(works, key=lambda work: (work.sampled_tokens, work.completion_tokens))


def slope(tokens: Sequence[int], values: Sequence[float]) -> float | None:
    """Least-squares growth of `values` per 1,000 tokens; None for fewer than two different sizes."""
    return linear_regression(tokens, values).slope * 1000 if len(set(tokens)) > 1 else None


def expected_gb(rows: Sequence[Row], work: Workload) -> float:
    """What TRL's memory will at most grow by: as the largest row so far, by tokens and again by the length of a row.

    Args:
        rows: measured ones, of which the last with a TRL side counts.
        work: the next one.
    """
    measured = [(row.work, row.trl) for row in rows if row.trl]
    if not measured:
        return 0.0
    last, trl = measured[-1]
    longer = max(1.0, work.completion_tokens / last.completion_tokens)
    return trl.grown_gb * work.sampled_tokens / last.sampled_tokens * longer


def free_gb() -> float:
    """Memory that processes may still take, in GB."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 / 1e9


def measure(work: Workload, policy: Path, folder: Path, with_trl: bool) -> Row:
    """Runs the sides in lockstep."""
    folder.mkdir()
    prompts = write_prompts(folder / "prompts.jsonl", policy, None, work)
    commands = {"TRL": trl_command(work, policy, prompts, folder / "trl")} if with_trl else {}
    commands["ours"] = own_command(work, policy, prompts, folder / "run")
    done = in_lockstep(work, commands, folder)
    return Row(work, done.get("TRL"), done["ours"])


def table(rows: Sequence[Row]) -> Table:
    """A line a step size; seconds and memory as TRL / ours."""
    result = Table(title="a step of the tiny policy, TRL / ours (seconds; GB grown since the first step)")
    columns = (
        "group",
        "completion",
        "tokens sampled",
        "step",
        "ratio",
        "generate",
        "forward+backward",
        "grown",
        "ratio",
    )
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        trl, ours = row.trl, row.ours
        result.add_row(
            str(row.work.group_size),
            f"{row.work.completion_tokens:,}",
            f"{row.work.sampled_tokens:,}",
            beside(trl and trl.seconds, ours.seconds),
            f"{trl.seconds / ours.seconds:.2f}" if trl else "",
            beside(trl and trl.shown("generate"), ours.shown("generate")),
            beside(trl and trl.shown("forward+backward"), ours.shown("forward+backward")),
            beside(trl and trl.grown_gb, ours.grown_gb),
            f"{ours.grown_gb / trl.grown_gb:.2f}" if trl else "",
        )
    return result


def beside(trl: float | None, ours: float) -> str:
    """Two numbers as TRL / ours."""
    return f"{'–' if trl is None else f'{trl:.2f}'} / {ours:.2f}"


def slopes(rows: Sequence[Row]) -> Iterator[tuple[str, str, dict[str, float | None]]]:
    """Yields each series' growth per 1,000 completion tokens by side and measure."""
    series = {
        f"completions, group of {GROUP_SIZE}": [row for row in rows if row.work.group_size == GROUP_SIZE],
        f"groups, completions of {COMPLETION_TOKENS}": [
            row for row in rows if row.work.completion_tokens == COMPLETION_TOKENS
        ],
    }
    for grows, members in series.items():
        for name in ("TRL", "ours"):
            sides = [(row.work.sampled_tokens, side) for row in members if (side := row.side(name))]
            tokens = [size for size, _ in sides]
            yield grows, name, {unit: slope(tokens, [of(side) for _, side in sides]) for unit, of in MEASURES.items()}


def slope_table(rows: Sequence[Row]) -> Table:
    """What 1,000 more completion tokens a step cost."""
    result = Table(title="growth per 1,000 completion tokens (least squares)")
    for column in ("what grows", "side", *MEASURES):
        result.add_column(column, justify="left" if column in ("what grows", "side") else "right", no_wrap=True)
    for grows, name, values in slopes(rows):
        shown = [
            "–" if value is None else f"{value:.3f}" if unit != "MB" else f"{value:.1f}"
            for unit, value in values.items()
        ]
        result.add_row(grows, name, *shown)
    return result


def write(file: Path | None, rows: Sequence[Row]) -> None:
    """Writes the rows so far and their slopes as JSON."""
    if file:
        fitted = [{"grows": grows, "side": name, "per_1000_tokens": values} for grows, name, values in slopes(rows)]
        file.write_text(json.dumps({"rows": [asdict(row) for row in rows], "slopes": fitted}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--completions", nargs="+", type=int, default=[64, 256, 1024], help=f"at a group of {GROUP_SIZE}"
    )
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8, 16, 32], help=f"at {COMPLETION_TOKENS} tokens")
    parser.add_argument("--prompts", type=int, default=2, help="a step")
    parser.add_argument("--steps", type=int, default=2, help="counted steps a side; one more warms up")
    parser.add_argument("--quick", action="store_true", help="one counted step, to try things")
    parser.add_argument("--peer", choices=["trl", "none"], default="trl", help="whom to compare with")
    parser.add_argument("--out", type=Path, help="file that gets rows and slopes as JSON, after every row")
    return parser.parse_args()


def main() -> None:
    """Measures every step size, and prints the table and the slopes."""
    given = parse()
    disable_progress_bar()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(MODEL, Path(folder))
        for work in plan(given.completions, given.groups, given.prompts, 1 if given.quick else given.steps):
            expected, free = expected_gb(rows, work), free_gb()
            fits = expected <= MEMORY_SHARE * free
            if given.peer == "trl" and not fits:
                print(f"TRL is left out at {work.group_size} x {work.completion_tokens}: it may take {expected:.0f} GB "
                      f"of {free:.0f} GB free")  # fmt: skip
            place = Path(folder, f"{work.group_size}-{work.completion_tokens}")
            rows.append(measure(work, policy, place, given.peer == "trl" and fits))
            write(given.out, rows)
    Console(width=160).print(table(rows), slope_table(rows))


if __name__ == "__main__":
    main()
