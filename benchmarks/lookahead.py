"""A step that looks ahead beside one that alternates: a vLLM server on one core, the trainer on another, SmolLM2.

`.venv/bin/python benchmarks/lookahead.py` starts the server on the last core it may use, trains on the first one, by
turns with and without `lookahead`, and prints seconds a step (medians; the first two steps and the last one of each run
are left out), of generation, training and sync, and what max(g, t) instead of g + t would gain at best.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

from serving import served
from workload import SMOLLM2

URL = "http://127.0.0.1:8017"
TRAINING = ("time/forward", "time/backward", "time/optimizer", "time/reference", "time/old")


def write_prompts(file: Path, count: int) -> None:
    """Sums, as many as an epoch has."""
    asked = [{"id": f"q{i}", "prompt": f"What is {i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(count)]
    file.write_text("".join(json.dumps(each) + "\n" for each in asked))


def train(file: str, lookahead: bool, steps: int, prompts: int, tokens: int) -> list[dict[str, float]]:
    """Runs steps in this process; returns the metrics of each, with its seconds under `step`."""
    import lightning

    from saerl_lightning.data.module import PromptDataModule
    from saerl_lightning.objective.grpo import GRPO
    from saerl_lightning.objective.terms import SamplerCorrection
    from saerl_lightning.policy.load import Policy
    from saerl_lightning.prompts.chat import ChatTemplate
    from saerl_lightning.records import Sampling
    from saerl_lightning.reward.random import RandomReward
    from saerl_lightning.rollout.server import ServerEngine
    from saerl_lightning.training.grpo import GRPOModule

    class Watch(lightning.Callback):
        """Notes when each step ends, and what it logged."""

        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []
            self.ended = time.perf_counter()

        def on_train_batch_end(
            self,
            trainer: lightning.Trainer,
            pl_module: lightning.LightningModule,
            outputs: object,
            batch: object,
            batch_idx: int,
        ) -> None:
            now = time.perf_counter()
            logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.rows.append(logged | {"step": now - self.ended})
            self.ended = now

    watch = Watch()
    module = GRPOModule(
        policy=Policy(str(SMOLLM2)),
        engine=ServerEngine([URL]),
        rewards=[RandomReward()],
        objective=GRPO(correction=SamplerCorrection()),
        sampling=Sampling(group_size=8, max_tokens=tokens),
        lookahead=lookahead,
    )
    data = PromptDataModule(train=file, batch_size=prompts, chat=ChatTemplate(max_prompt_tokens=64))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return watch.rows[2:-1]


def trained(arguments: argparse.Namespace, lookahead: bool) -> list[dict[str, float]]:
    """Runs `train` in a process of its own, on the trainer's core."""
    command = [sys.executable, __file__, "--arm", str(int(lookahead)), "--file", arguments.file]
    for name in ("steps", "prompts", "tokens"):
        command += [f"--{name}", str(getattr(arguments, name))]
    first = min(os.sched_getaffinity(0))
    done = subprocess.run(["taskset", "-c", str(first), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def server(file: str, tokens: int, folder: str) -> AbstractContextManager[None]:
    """Keeps the server on its core."""
    configs = [
        part for name in ("grpo", "model/smollm2_135m", "engine/server") for part in ("-c", f"configs/{name}.yaml")
    ]
    options = [f"--model.sampling.max_tokens={tokens}", f"--data.train={file}", f"--model.policy.path={SMOLLM2}"]
    pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    return served(URL, [*configs, *options], Path(folder), pinned)


def row(name: str, steps: list[dict[str, float]]) -> dict[str, float]:
    """Prints and returns medians of an arm: seconds of a step and of its parts."""
    middle = {
        key: statistics.median(step.get(key, 0.0) for step in steps) for key in ("step", "time/sync", "time/wait")
    }
    middle |= {"g": statistics.median(step["time/generate"] + step["time/score"] for step in steps)}
    middle |= {"t": statistics.median(sum(step.get(key, 0.0) for key in TRAINING) for step in steps)}
    middle |= {"guard": statistics.median(step.get("time/guard", 0.0) for step in steps)}
    stale = statistics.mean(step["rollouts/staleness"] for step in steps)
    print(
        f"{name:12} {len(steps)} steps, staleness {stale:.2g}: "
        + ", ".join(f"{k} {v:.2f} s" for k, v in middle.items())
    )
    return middle


def main(arguments: argparse.Namespace) -> None:
    """Measures both arms by turns."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    with tempfile.TemporaryDirectory() as folder:
        arguments.file = f"{folder}/prompts.jsonl"
        write_prompts(Path(arguments.file), arguments.prompts * (arguments.steps + 1))
        arms: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        with server(arguments.file, arguments.tokens, folder):
            for _ in range(arguments.turns):
                for ahead in arms:
                    arms[ahead] += trained(arguments, ahead)
                    row("look-ahead" if ahead else "alternating", arms[ahead])
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; of all turns:")
    alone, ahead = row("alternating", arms[False]), row("look-ahead", arms[True])
    best = (alone["g"] + alone["t"] + alone["time/sync"]) / (max(alone["g"], alone["t"]) + alone["time/sync"])
    print(f"look-ahead is {alone['step'] / ahead['step']:.2f} x as fast; (g + t + s) / (max(g, t) + s) is {best:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="Steps of a run, at least four.")
    parser.add_argument("--turns", type=int, default=2, help="Runs of each arm.")
    parser.add_argument("--prompts", type=int, default=2, help="Prompts a step, in groups of 8.")
    parser.add_argument("--tokens", type=int, default=48, help="Tokens of a completion.")
    parser.add_argument("--arm", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm is None:
        main(given)
    else:
        warnings.simplefilter("ignore")
        print(json.dumps(train(given.file, bool(given.arm), given.steps, given.prompts, given.tokens)))
