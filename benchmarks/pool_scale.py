"""Reads, extracts and plans a large pool of short prompts, and prints seconds and peak memory after each part.

The prompts are sums in a JSON-lines file, the signal is LengthSignals in a cache, the order comes from it by
TailMixing, KMeansClusters and EasyToHard with a planted label. Compare plan_scale.py, which measures the operations
alone, from wide sparse features.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COUNTS = (10_000, 100_000, 1_000_000)


def write_prompts(file: Path, count: int) -> None:
    """Writes sums with an answer and a difficulty, one a line."""
    with file.open("w") as lines:
        for i in range(count):
            terms = [i % 97, i % 89, i // 7, *range(i % 5)]
            record = {"id": f"p{i}", "prompt": f"What is {' + '.join(map(str, terms))}?", "answer": str(sum(terms))}
            lines.write(json.dumps({**record, "difficulty": len(terms) * 10.0}) + "\n")


def measure(folder: Path) -> Iterator[tuple[str, float, float]]:
    """Yields each part's name, its seconds, and the peak memory so far in GB."""
    from saerl_lightning.data.clustering import KMeansClusters
    from saerl_lightning.data.curriculum import EasyToHard
    from saerl_lightning.data.mixing import TailMixing
    from saerl_lightning.data.planning import Planner
    from saerl_lightning.prompts.file import FilePrompts
    from saerl_lightning.signals.cache import CachedSignals
    from saerl_lightning.signals.text import LengthSignals

    held: dict[str, Any] = {}
    signals = CachedSignals(LengthSignals(), str(folder / "signals"))
    operations = {"clustering": KMeansClusters(), "curriculum": EasyToHard(labels=1000), "mixing": TailMixing()}
    parts: dict[str, Callable[[], Any]] = {
        "libraries": lambda: None,
        "read": lambda: held.update(prompts=FilePrompts(str(folder / "prompts.jsonl")).load()),
        "extract": lambda: signals.features(held["prompts"]),
        "extract again": lambda: signals.features(held["prompts"]),
        "plan": lambda: Planner(256, 0, signals, operations).plan(held["prompts"], {})[0].ledger(),
    }
    for name, part in parts.items():
        began = time.perf_counter()
        part()
        yield name, time.perf_counter() - began, peak_gb()


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(COUNTS), help="prompts")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        for name, seconds, peak in measure(given.folder):
            print(f"| {name} | {seconds:.1f} | {peak:.2f} |", flush=True)
        return
    for count in given.sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            write_prompts(Path(folder, "prompts.jsonl"), count)
            print(f"\n{count:,} prompts\n\n| part | seconds | peak so far, GB |\n| --- | ---: | ---: |", flush=True)
            subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
