"""SAE features of prompts, tokens a second and memory, beside sae-lens': `benchmarks/extraction.py`.

SmolLM2-135M at its middle layer, a TopK SAE (k = 32, eight times as wide as the stream), the largest value of each feature
over a prompt's tokens; float32, one thread. Each run is a process of its own, from token ids to pooled rows, models loaded
before; the sides take turns, medians are taken over the repeats. The peer is `peers/sae_lens_extraction.py` in both its
ways: `full` runs the whole model, `stop` stops behind the layer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from extraction_work import Report, questions, save_random_sae
from rich.console import Console
from rich.table import Table
from workload import ROOT, SMOLLM2

BENCHMARKS = Path(__file__).resolve().parent
SIDES = {
    "ours": ["own_extraction"],
    "sae-lens, stop": ["peers.sae_lens_extraction", "--way=stop"],
    "sae-lens, full": ["peers.sae_lens_extraction", "--way=full"],
}
GOALS = {"sae-lens, stop": 3.5, "sae-lens, full": 5.0}  # least ratio of tokens a second, ours / theirs
MEMORY_GOAL = 0.5  # most of the full way's peak
ROUNDING = 1e-4  # of the largest pooled value
SAME = 1e-5  # largest share of pooled values that may differ by more

Reports = Mapping[str, Sequence[Report]]


def run(side: str, folder: Path, model: Path, repeat: int) -> tuple[Report, np.ndarray]:
    """Runs one side in a process of its own; its report, and its pooled rows."""
    out = folder / f"{side}-{repeat}"
    files = [f"--model={model}", f"--sae={folder / 'sae'}", f"--questions={folder / 'questions.json'}", f"--out={out}"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(BENCHMARKS)
    command = [sys.executable, "-m", *SIDES[side], *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} stopped:\n{done.stderr[-3000:]}")
    return Report(**json.loads((out / "report.json").read_text())), np.load(out / "rows.npy")


def measure(folder: Path, model: Path, count: int, factor: int, repeats: int) -> tuple[Reports, Mapping[str, float]]:
    """Lets all sides take turns; their reports, and the share of each peer's pooled values that are not ours."""
    (folder / "questions.json").write_text(json.dumps(questions(count)))
    save_random_sae(folder / "sae", model, factor)
    reports: dict[str, list[Report]] = {side: [] for side in SIDES}
    rows: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            report, rows[side] = run(side, folder, model, repeat)
            reports[side].append(report)
            print(f"{repeat + 1}/{repeats} {side}: {report.rate:.0f} tokens/s, {report.peak_gb:.2f} GB", flush=True)
    return reports, {side: differing(rows[side], rows["ours"]) for side in SIDES}


def differing(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Share of pooled values that differ by more than rounding.

    Where a token's k-th and next pre-activation are equal to rounding, the sides may keep different ones of them.
    """
    return float(np.mean(np.abs(theirs - ours) > ROUNDING * ours.max()))


def rate(reports: Sequence[Report]) -> float:
    """Median tokens a second."""
    return median(report.rate for report in reports)


def peak(reports: Sequence[Report]) -> float:
    """Highest memory of any repeat, in GB."""
    return max(report.peak_gb for report in reports)


def gemm_share(reports: Sequence[Report]) -> float:
    """Arithmetic of the tokens that were computed, as a share of what the machine's matrix products could do."""
    return median(r.computed_gflop / r.seconds / r.gemm_gflops for r in reports)


def table(reports: Reports, apart: Mapping[str, float], title: str) -> Table:
    """One line a side; ratios are ours over theirs in speed, theirs over the full way's in memory."""
    result = Table(title=title)
    for column in (
        "side",
        "tokens/s",
        "lowest-highest",
        "ours is faster",
        "peak GB",
        "of full's peak",
        "values that differ",
    ):
        result.add_column(column, justify="left" if column == "side" else "right", no_wrap=True)
    ours, full = rate(reports["ours"]), peak(reports["sae-lens, full"])
    for side, done in reports.items():
        spread = f"{min(r.rate for r in done):.0f}-{max(r.rate for r in done):.0f}"
        numbers = (f"{rate(done):.0f}", spread, f"{ours / rate(done):.2f}x", f"{peak(done):.2f}")
        result.add_row(side, *numbers, f"{peak(done) / full:.2f}", f"{apart[side]:.1e}")
    return result


def missed(reports: Reports, apart: Mapping[str, float]) -> list[str]:
    """Goals that were not reached."""
    ratios = {side: rate(reports["ours"]) / rate(reports[side]) for side in GOALS}
    memory = peak(reports["ours"]) / peak(reports["sae-lens, full"])
    return [
        *(f"{side}: {ratios[side]:.2f}x < {goal}x" for side, goal in GOALS.items() if ratios[side] < goal),
        *([f"memory {memory:.2f} > {MEMORY_GOAL} of the full way's"] if memory > MEMORY_GOAL else []),
        *(f"{side}: {apart[side]:.1e} of the values differ" for side in GOALS if apart[side] > SAME),
    ]


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="model folder")
    parser.add_argument("--prompts", type=int, default=192, help="questions of twenty reasoning-gym tasks")
    parser.add_argument("--factor", type=int, default=8, help="SAE features for each number of the stream")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--out", type=Path, help="file that gets every report as JSON")
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table, and names the goals that were missed."""
    given = parse()
    if not given.model.is_dir():
        raise SystemExit(f"{given.model} is missing; run `make smollm2`")
    with tempfile.TemporaryDirectory() as folder:
        reports, apart = measure(Path(folder), given.model.resolve(), given.prompts, given.factor, given.repeats)
    tokens = reports["ours"][0].tokens
    title = f"SAE features of {given.prompts} prompts, {tokens} tokens; medians of {given.repeats}, one thread"
    Console(width=130).print(table(reports, apart, title))
    print(
        f"ours reaches {gemm_share(reports['ours']):.0%} of the machine's measured matrix product rate "
        f"({median(r.gemm_gflops for r in reports['ours']):.0f} GFLOP/s)"
    )
    for goal in missed(reports, apart):
        print(f"goal missed: {goal}")
    if given.out:
        every = {side: [asdict(report) for report in done] for side, done in reports.items()}
        given.out.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
