"""Measures the memory that GRPO steps add on a CPU, beside the estimate: `benchmarks/step_memory.py tiny 4 128 8 256`.

A step with the tiny policy comes first, so that libraries are not counted. The command's last line gives both numbers in GB.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lockstep import peak_memory_gb, reset_peak_memory
from step_sides import own_command
from workload import Workload, build_policy, write_prompts

from saerl_lightning import cli
from saerl_lightning.verbs.needed_memory import needed_memory

STEPS = 3


def measure(work: Workload, folder: Path, flags: Sequence[str]) -> tuple[float, float]:
    """Trains for a few steps; returns the estimated and the measured growth of resident memory, in GB."""
    policy = build_policy(work.model, folder)
    prompts = write_prompts(folder / "prompts.jsonl", policy, None, work)
    small = policy if work.model == "tiny" else build_policy("tiny", folder)
    first = Workload(work.model, 1, work.prompt_tokens, 0, 2, 2)
    cli.run(_arguments(first, small, prompts, folder / "first", ["--trainer.max_steps=1"]))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()
    before = peak_memory_gb()
    run = cli.run(_arguments(work, policy, prompts, folder / "run", [f"--trainer.max_steps={STEPS}", *flags]))
    growth = peak_memory_gb() - before
    made = needed_memory(run.model, run.datamodule, run.trainer)
    assert made is not None
    return (made.total - made.libraries) / 1e9, growth  # libraries were there before


def _arguments(work: Workload, policy: Path, prompts: Path, run_dir: Path, flags: Sequence[str]) -> list[str]:
    """The benchmark's command line, without the gate that waits between steps."""
    command = own_command(work, policy, prompts, run_dir)[1:]
    return [*(each for each in command if "StepGate" not in each), *flags]


def main() -> None:
    """Measures one setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["tiny", "smollm2"], help="policy that is trained")
    for name, text in (
        ("prompts", "prompts of a step"),
        ("prompt_tokens", "tokens of a prompt"),
        ("group_size", "completions of a prompt"),
        ("completion_tokens", "tokens of every completion"),
    ):
        parser.add_argument(name, type=int, help=text)
    given, flags = parser.parse_known_args()
    work = Workload(given.model, given.prompts, given.prompt_tokens, 0, given.group_size, given.completion_tokens)
    with tempfile.TemporaryDirectory() as folder:
        made, growth = measure(work, Path(folder), flags)
    print(f"estimated {made:.3f} measured {growth:.3f} GB: estimate / measured = {made / growth:.2f}")


if __name__ == "__main__":
    main()
