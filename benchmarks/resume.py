"""Is a resumed run the same run? `benchmarks/resume.py` kills it at random and compares, bit for bit.

The tiny policy is trained by the command line with a checkpoint every step, once without interruption; then again and
again with `kill -9` at a random moment and `--ckpt_path last`. Every other kill waits for a checkpoint to be written and
hits the write itself. Weights, optimiser state, the datamodule's cursor, the random states and a batch that was sampled
ahead must be equal in the end. So it goes for every way of training in `WAYS`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from digest import digest
from serving import free_url, served
from transformers.utils.logging import disable_progress_bar

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.policy.load import Policy

ROOT = Path(__file__).resolve().parent.parent
# Right answers are rare before the policy has learned anything: a second reward gives every step a gradient.
REWARDS = [{"class_path": "ReasoningGymReward"}, {"class_path": "own_parts.TextReward"}]
PARTS = [{"class_path": "own_parts.PartReward"}, *REWARDS]  # for refills: some groups vary in the first reward
SETTINGS = [  # five batches an epoch, so that a run passes through several
    *("-c", "configs/demo/tasks.yaml", "-c", "configs/demo/grpo.yaml"),
    *("--data.val=null", "--data.train.size=20", "--data.batch_size=4", "--model.sampling.group_size=4"),
    *("--checkpoint.every_n_train_steps=1", "--seed_everything=0", f"--model.rewards={json.dumps(REWARDS)}"),
]


@dataclass(frozen=True)
class Way:
    """A way of training.

    Args:
        flags: added to `SETTINGS`.
        updates: optimiser steps a batch.
        saved: whether each step is followed by a checkpoint, or only each epoch.
        write_seconds: about what a checkpoint of the tiny policy takes.
        served: whether a vLLM server samples: one for all its runs, which then take turns.
    """

    flags: Sequence[str] = ()
    updates: int = 1
    saved: bool = True
    write_seconds: float = 0.02
    served: bool = False

    def checkpoints(self, batches: int) -> int:
        """How many a run of some batches writes: one a batch, or one an epoch of five and one in the end."""
        return batches if self.saved else -(-batches // 5)


WAYS = {
    "plain": Way(),
    "refills": Way(
        [
            "-c",
            "configs/objective/dapo.yaml",
            "--model.dynamic_sampling.max_rounds=2",
            f"--model.rewards={json.dumps(PARTS)}",
        ]
    ),
    "LoRA": Way([f"--model.policy.lora={json.dumps({'rank': 4})}"]),
    "bf16-mixed": Way(["--trainer.precision=bf16-mixed"]),
    "several updates": Way(["--model.updates_per_batch=2"], updates=2),
    "schedule": Way(
        ["--model.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR", "--model.lr_scheduler.T_max=12"]
    ),
    "epoch's end": Way(["--checkpoint.every_n_train_steps=1000"], saved=False),
    # Two processes, all of which are killed at once. A script samples, as shards can't.
    "shards": Way(
        [
            *("--trainer.strategy=sharded", "--trainer.devices=2", "--model.engine=ScriptedEngine"),
            f"--model.engine.completions={json.dumps(['4', '17 apples', 'a b c', 'no answer at all'])}",
        ],
        write_seconds=0.1,
    ),
    # A vLLM server of its own, which batches what it is asked and keeps prefixes, and outlives the killed runs.
    "look-ahead": Way(
        [
            *("-c", "configs/engine/lookahead.yaml", "--model.engine.server.device=cpu"),
            *("--model.engine.server.kv_cache_gb=0.125", "--model.engine.server.max_num_seqs=32"),
        ],
        served=True,
    ),
}
COMPARED = {
    "weights": "state_dict",
    "optimizer": "optimizer_states",
    "cursor": "PromptDataModule",
    "random": "random_states",
    "batch ahead": "ahead",
}
UNTIMED = ("rows", "sampling", "rollouts", "rewards")  # entries of the batch ahead that are not seconds


@dataclass(frozen=True)
class Run:
    """A training run in its own folder, started as a user would."""

    folder: Path
    policy: Path
    steps: int
    way: Way
    temporary: Path | None  # where its temporary files go; null puts them into its folder

    @property
    def last(self) -> Path:
        """The checkpoint it resumes from."""
        return self.folder / "run/checkpoints/last.ckpt"

    @property
    def temporary_files(self) -> Path:
        """A folder that no other run writes to."""
        return (self.temporary or self.folder) / f"temporary-{self.folder.name}"

    def start(self, *more: str) -> subprocess.Popen:
        """Starts or resumes it, on one thread."""
        self.temporary_files.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = [f"--run_dir={self.folder / 'run'}", f"--model.policy.path={self.policy}"]
        command = [
            sys.executable,
            "main.py",
            "fit",
            *SETTINGS,
            *self.way.flags,
            *flags,
            f"--trainer.max_steps={self.steps}",
            *more,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary_files)}
        environment["PYTHONPATH"] = str(ROOT / "benchmarks")
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def resume(self) -> dict[str, str]:
        """Goes on from the last checkpoint and returns the digests of the end."""
        self.start("--ckpt_path=last").wait()
        return self.ending()

    def ending(self) -> dict[str, str]:
        """Digests of what the run ended with."""
        checkpoint = load(self.last)
        if checkpoint["global_step"] != self.steps:
            raise SystemExit(f"{self.folder} stopped at step {checkpoint['global_step']}; see its log.txt")
        if ahead := checkpoint.get("ahead"):
            checkpoint["ahead"] = {name: ahead[name] for name in UNTIMED}
        return {name: digest(checkpoint.get(key)) for name, key in COMPARED.items()}

    def saved_step(self) -> int | None:
        """Step of the last checkpoint, 0 where there is none, null where it is torn."""
        if not self.last.exists():
            return 0
        try:
            return load(self.last)["global_step"]
        except (RuntimeError, EOFError, OSError):
            return None

    def version(self) -> int | None:
        """Changes with every checkpoint; null before the first."""
        return self.last.stat().st_mtime_ns if self.last.exists() else None

    def writing(self) -> bool:
        """Whether a checkpoint is being written: a file that is to become it has appeared."""
        if (self.last.parent / f".{self.last.name}.writing").is_dir():  # of shards
            return True
        folders = [self.temporary_files, self.last.parent]
        files = (entry for folder in folders if folder.is_dir() for entry in os.scandir(folder) if entry.is_file())
        return any(entry.name not in (self.last.name, f"{self.last.name}.sha256") for entry in files)


def load(path: Path) -> dict[str, Any]:
    """Loads a checkpoint; one that was saved in shards, whole."""
    if not (path / "meta.pt").is_file():
        return torch.load(path, weights_only=False)
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.NamedTemporaryFile() as joined:
        dcp_to_torch_save(path, joined.name)
        tensors = torch.load(joined.name, weights_only=False)
    meta = torch.load(path / "meta.pt", weights_only=False)
    return {**meta, "state_dict": tensors["state_dict"], "optimizer_states": tensors["optimizer_0"]}


def kill_all(process: subprocess.Popen) -> None:
    """Kills a run with the processes that it started, without a moment between."""
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in others:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(others, timeout=30)


@dataclass(frozen=True)
class Kill:
    """When to kill: some time after the step-th checkpoint, or some time after the next one begins to be written."""

    number: int
    step: int
    share: float  # of the time a step, or a write, takes
    aims_at_write: bool


@dataclass(frozen=True)
class Verdict:
    """What a kill led to."""

    kill: Kill
    delay_ms: float  # after the checkpoint that it names
    in_write: bool  # an unfinished file was left behind
    resumed: int | None  # step, null where the checkpoint is torn
    differing: list[str]

    def __str__(self) -> str:
        """One line."""
        moment = " while a checkpoint was written" if self.in_write else ""
        resumed = "the checkpoint is torn" if self.resumed is None else f"resumed at step {self.resumed}"
        equal = "equal: " + ", ".join(COMPARED) if not self.differing else "DIFFERENT: " + ", ".join(self.differing)
        return (
            f"kill {self.kill.number}: after step {self.kill.step} at +{self.delay_ms:.0f} ms{moment}, "
            f"{resumed}, {equal}"
        )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> float:
    """Polls until the condition holds and returns the time."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"a run ended by itself with exit code {process.returncode}; see its log.txt")
        time.sleep(0.0005)
    return time.perf_counter()


def watch(run: Run, process: subprocess.Popen, steps: int) -> list[float]:
    """Times at which the run began and wrote its first `steps` checkpoints."""
    times, seen = [wait_until((run.folder / "run/config.yaml").exists, process)], None
    for _ in range(steps):
        times.append(wait_until(lambda old=seen: run.version() != old, process))
        seen = run.version()
    return times


def kill_and_resume(kill: Kill, run: Run, pace: Sequence[float], expected: dict[str, str]) -> Verdict:
    """Starts a run, kills it as planned, resumes it and compares its end with the uninterrupted run's."""
    process = run.start()
    came = watch(run, process, kill.step)[-1]
    if kill.aims_at_write:
        wait_until(run.writing, process)
    time.sleep(kill.share * (run.way.write_seconds if kill.aims_at_write else pace[kill.step]))
    kill_all(process)
    delay = time.perf_counter() - came
    process.wait()
    in_write, resumed = run.writing(), run.saved_step()
    found = {} if resumed is None else run.resume()
    shutil.rmtree(run.temporary_files)
    return Verdict(
        kill, 1000 * delay, in_write, resumed, [name for name in COMPARED if found.get(name) != expected[name]]
    )


def plan(kills: int, steps: int, seed: int) -> list[Kill]:
    """Draws the moments; the last step is left out, for a run that is over can't be killed."""
    draw = random.Random(seed)
    return [Kill(i + 1, draw.randrange(steps - 1), draw.random(), aims_at_write=i % 2 == 1) for i in range(kills)]


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="runs of each way that are killed and resumed")
    parser.add_argument("--steps", type=int, default=12, help="batches a run")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), help="which of them; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/resume"), help="where the runs go; emptied first")
    parser.add_argument(
        "--temporary", type=Path, help="the runs' TMPDIR, e.g. on another file system than their folders"
    )
    return parser.parse_args()


def main() -> None:
    """Runs each way once without interruption, then kills and resumes; exit code 1 if anything differs."""
    given = parse()
    disable_progress_bar()
    shutil.rmtree(given.folder, ignore_errors=True)
    root = given.folder.resolve()
    policy = build_tiny_policy(str(root / "policy"), ["What is 7 + 2? Spell the word: letter by letter."])
    equal = []
    for name in given.ways or [name for name, way in WAYS.items() if can_run(name, way)]:
        folder = root / name.replace(" ", "-").replace("'", "")
        with with_server(WAYS[name], folder, policy) as way:
            equal.append(try_way(name, way, given, folder, policy))
    print(f"{sum(equal)} of {given.kills * len(equal)} resumed runs equal the uninterrupted ones")
    sys.exit(0 if sum(equal) == given.kills * len(equal) else 1)


def can_run(name: str, way: Way) -> bool:
    """Whether what a way needs is installed; says so if not."""
    can = not way.served or find_spec("vllm") is not None
    if not can:
        print(f"{name} is left out: vllm is not installed")
    return can


@contextmanager
def with_server(way: Way, folder: Path, policy: Path) -> Iterator[Way]:
    """Keeps the server that a way needs inside the block; the way with its address."""
    if not way.served:
        yield way
        return
    url = free_url()
    with served(url, [*SETTINGS, *way.flags, f"--model.policy.path={policy}"], folder / "server"):
        transfer = ["--model.engine.transfer=FileTransfer", f"--model.engine.transfer.folder={folder / 'sent'}"]
        yield replace(way, flags=[*way.flags, f"--model.engine.urls=[{url}]", *transfer])


def try_way(name: str, way: Way, given: argparse.Namespace, root: Path, policy: Path) -> int:
    """Kills and resumes a way of training, prints every verdict, and counts the runs that end equal."""

    def a_run(folder: str) -> Run:
        return Run(root / folder, policy, given.steps * way.updates, way, given.temporary)

    expected, pace = uninterrupted(a_run("whole"))
    print(f"{name}: uninterrupted, {given.steps} batches, weights {expected['weights'][:16]}", flush=True)
    kills = plan(given.kills, way.checkpoints(given.steps), given.seed)
    runs = [a_run(f"kill-{kill.number}") for kill in kills]
    verdicts = []
    with ThreadPoolExecutor(1 if way.served else given.jobs) as pool:
        for verdict in pool.map(lambda kill, run: kill_and_resume(kill, run, pace, expected), kills, runs):
            verdicts.append(verdict)
            print(f"{name}: {verdict}", flush=True)
    equal = sum(not verdict.differing for verdict in verdicts)
    print(f"{name}: {equal} of {given.kills} equal", flush=True)
    return equal


def require_trained(run: Run) -> None:
    """Refuses a run that left its weights as they were: any two such runs are equal."""
    before = Policy(str(run.policy)).load_model().state_dict()
    after = load(run.last)["state_dict"]
    adapters = [name for name in after if "lora_B" in name]  # which begin at 0
    still = [name for name in adapters if not after[name].any()]
    if not adapters:
        still = [name for name, weights in before.items() if torch.equal(weights, after[f"model.{name}"])]
    if still:
        raise SystemExit(f"training left {', '.join(still)} unchanged; equality would mean nothing")


def uninterrupted(run: Run) -> tuple[dict[str, str], list[float]]:
    """Trains without interruption: what it ends with, and how long each step took (seconds, checkpoint included)."""
    process = run.start()
    times = watch(run, process, run.way.checkpoints(run.steps // run.way.updates) - 1)
    process.wait()
    require_trained(run)
    shutil.rmtree(run.temporary_files)
    return run.ending(), [later - earlier for earlier, later in pairwise(times)]


if __name__ == "__main__":
    main()
