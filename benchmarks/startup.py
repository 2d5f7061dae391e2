"""How long a user waits for an answer: ratios of medians to the time of importing Lightning's command line alone.

    .venv/bin/python benchmarks/startup.py             medians of 7, in turns
    .venv/bin/python benchmarks/startup.py --repeats 3

Every command line is a process of its own, and each ends with the answer that it is timed for; another one is refused. The
processor's time is compared, since a machine shared with others stretches the clock's. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SAERL = ["-m", "saerl_lightning"]
LIGHTNING = "importing Lightning's command line"


@dataclass(frozen=True)
class Case:
    """A command line, what it must answer, and what it may take: times Lightning's import, or seconds."""

    name: str
    args: list[str]
    says: str
    ratio: float | None = None
    seconds: float | None = None


def cases(folder: Path) -> list[Case]:
    """What is timed; the files stand in a folder that `saerl init` has made."""
    fit = [*SAERL, "fit", "-c", str(folder / "run.yaml")]
    broken = folder / "broken.jsonl"
    broken.write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n{"prompt": 3}\n')
    return [
        Case(LIGHTNING, ["-c", "import lightning.pytorch.cli"], ""),
        Case("--help", [*SAERL, "--help"], "usage: ", ratio=1.2),
        Case("fit --help", [*SAERL, "fit", "--help"], "usage: ", ratio=1.2),
        Case("a bad value", [*fit, "--data.batch_size", "many"], "data.batch_size is 'many'", ratio=1.3),
        Case("a number out of range", [*fit, "--data.batch_size", "0"], "batch_size is 0", ratio=1.3),
        Case("a mistyped argument", [*fit, "--data.curiculum", "LengthOrder"], "did you mean 'curriculum'", ratio=1.3),
        Case("a mistyped config", [*fit, "-c", "grop.yaml"], "did you mean 'grpo.yaml'", ratio=1.3),
        Case("a file that is not there", [*fit, "--data.train", "nowhere.jsonl"], "nowhere.jsonl", ratio=1.3),
        Case("a bad row", [*fit, "--data.train", str(broken)], "broken.jsonl", ratio=1.3),
        Case("--version", [*SAERL, "--version"], "saerl_lightning ", seconds=1.0),
        Case("configs", [*SAERL, "configs"], "grpo.yaml", seconds=1.0),
        Case("init", [*SAERL, "init", "{new}"], "wrote ", seconds=1.0),
        Case("a mistyped verb", [*SAERL, "fti"], "did you mean 'fit'", seconds=1.0),
    ]


def timed(case: Case, folder: Path, number: int) -> tuple[float, float]:
    """Seconds of the processor and of the clock that a command line takes to its answer."""
    words = [word.replace("{new}", str(folder / f"new-{number}")) for word in case.args]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    clock, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    said = done.stdout + done.stderr
    assert case.says in said and "Traceback" not in said, f"{case.name}: {said[-2000:]}"
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="processes of each case, in turns (7)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, *SAERL, "init", "try"], cwd=folder, check=True, capture_output=True)
        every = cases(folder / "try")
        taken: dict[str, list[tuple[float, float]]] = {}
        for number in range(repeats + 1):  # the first round only warms the disk's cache
            for case in every:
                seconds = timed(case, folder, number)
                if number:
                    taken.setdefault(case.name, []).append(seconds)
    missed = report(every, taken)
    sys.exit(1 if missed else 0)


def report(every: list[Case], taken: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Prints a row a case, and returns the names of those that miss their goal."""
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
    lightning = medians[LIGHTNING][0]
    missed = []
    print("| answer | processor, s | clock, s | times Lightning's import | goal |\n| --- | --- | --- | --- | --- |")
    for case in every:
        processor, clock = medians[case.name]
        ratio = processor / lightning
        goal = f"{case.ratio:g} times" if case.ratio else f"{case.seconds:g} s" if case.seconds else ""
        if (case.ratio and ratio > case.ratio) or (case.seconds and processor > case.seconds):
            missed.append(case.name)
            goal += ", missed"
        print(f"| {case.name} | {processor:.2f} | {clock:.2f} | {ratio:.2f} | {goal} |")
    return missed


if __name__ == "__main__":
    main()
