"""`demo`: the whole method in a small, real run: tiny policy, SAE, signals, labels, plan, and GRPO with and without.

It downloads nothing and needs no GPU. It uses the same YAML, prompts, engine, graders, checkpoints and export as a real
run. It shows that these work, and how much GRPO gains here. A few seeds of a tiny policy say little about which arm is
better elsewhere.
"""

from __future__ import annotations

import csv
import itertools
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from saerl_lightning import cli, shipped
from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import RunStopped
from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.files import read_mapping
from saerl_lightning.progress import Bar
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.ranges import Count, Seed, Workers, require_arguments
from saerl_lightning.records import Prompt
from saerl_lightning.study.plan import PROGRAM
from saerl_lightning.study.processes import Executor, SubprocessExecutor, tail
from saerl_lightning.tools.export import export

TASKS = "configs/demo/tasks.yaml"


def tiny_policy(folder: str, seed: Seed = 0, tasks: str = TASKS) -> None:
    """Writes the demo's policy: random weights, about a million of them.

    Args:
        folder: Folder to write, which must be missing or empty.
        seed: Seed of the random weights.
        tasks: Path of the config whose training prompts the tokenizer is trained on.
    """
    require_arguments(tiny_policy, locals())
    build_tiny_policy(folder, [f"{each.text} {each.answer}" for each in prompts_of(tasks, "train")], seed=seed)


def prompts_of(tasks: str, *path: str) -> list[Prompt]:
    """Loads a prompt set of a config; path "val", "demo" selects `data.val.demo`."""
    source = read_mapping(shipped.find(tasks), "the config of the tasks")["data"]["init_args"]
    for key in path:
        source = source[key]
    return ReasoningGymPrompts(**source["init_args"]).load()


if __name__ == "__main__":
    auto_cli(tiny_policy, as_positional=True)


CURVE = "val/demo/avg@8"


@dataclass(frozen=True)
class Measured:
    """Accuracy of a policy on the test questions, with the same questions in the same order each time."""

    accuracy: Float[np.ndarray, " Q"]  # avg@k of each question
    topics: list[str]  # Q


def print_tasks(before: Measured, after: Mapping[str, Sequence[Measured]], samples: int) -> None:
    """Prints accuracy by task: of the cold start, and of each arm as a mean over its seeds."""
    table = Table(title=f"avg@{samples} on questions asked nowhere else, 95 % bootstrap intervals over questions")
    for column in ("task", "questions", "cold start", *after):
        table.add_column(column, justify="left" if column == "task" else "right")
    topics = np.array(before.topics)
    for task in [*sorted(set(topics)), "all"]:
        rows = np.ones(len(topics), dtype=bool) if task == "all" else topics == task
        cells = [_interval(each[rows]) for each in (before.accuracy, *(_mean(after[arm]) for arm in after))]
        table.add_row(task, str(rows.sum()), *cells)
    Console(width=120).print(table)


def print_arms(
    before: Measured, after: Mapping[str, Sequence[Measured]], runs: Mapping[str, Sequence[Trained]], samples: int
) -> None:
    """Prints each arm's final accuracy and the area under its curve by seed, and the difference of the arms."""
    table = Table(title="the arms on one budget: the same start, prompts, batch and number of steps")
    for column in (
        "arm",
        "seed",
        f"area under {CURVE}",
        f"its end, avg@{samples}",
        "gain over the cold start (paired)",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, measured in after.items():
        for run, end in zip(runs[arm], measured, strict=True):
            gain = _interval(end.accuracy - before.accuracy, sign=True)
            table.add_row(arm, str(run.seed), f"{run.area(CURVE):.3f}", f"{end.accuracy.mean():.3f}", gain)
        area = np.mean([run.area(CURVE) for run in runs[arm]])
        gain = _interval(_mean(measured) - before.accuracy, sign=True)
        table.add_row(arm, "mean", f"{area:.3f}", f"{_mean(measured).mean():.3f}", gain, end_section=True)
    Console(width=120).print(table)
    first, *others = after
    for arm in others:
        areas = [b.area(CURVE) - a.area(CURVE) for a, b in zip(runs[first], runs[arm], strict=True)]
        end = _interval(_mean(after[arm]) - _mean(after[first]), sign=True)
        by_seed = ", ".join(f"{each:+.3f}" for each in areas)
        print(
            f"{arm} - {first}: end {end} (over questions, these {len(areas)} seeds); area {np.mean(areas):+.3f} "
            f"(by seed: {by_seed})"
        )


def _mean(measured: Sequence[Measured]) -> Float[np.ndarray, " Q"]:
    return np.mean([each.accuracy for each in measured], axis=0)


def _interval(values: Float[np.ndarray, " Q"], sign: bool = False) -> str:
    low, high = bootstrap_interval(values)
    form = "+.3f" if sign else ".3f"
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Trained:
    """A finished run of the demo."""

    seed: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Path of the last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a logged metric."""
        with (self.folder / "csv" / "version_0" / "metrics.csv").open() as file:
            return [(int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]

    def area(self, metric: str) -> float:
        """Mean height of a metric's curve over the steps: the area by trapezoids, divided by the length."""
        points = self.curve(metric)
        pairs = itertools.pairwise(points)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / (points[-1][0] - points[0][0])


@dataclass(frozen=True)
class Arms:
    """Arms of the demo by name, each with its flags; every arm is run once a seed."""

    root: Path
    flags: dict[str, list[str]]

    def train(self, seeds: Iterable[int], jobs: int) -> dict[str, list[Trained]]:
        """Trains every arm with every seed, `jobs` processes at a time.

        Raises:
            RunStopped: if a run failed, with the last lines of its log.
        """
        wanted = [(arm, seed) for seed in seeds for arm in self.flags]
        executor = SubprocessExecutor()
        with ThreadPoolExecutor(jobs) as pool:
            finished = pool.map(lambda each: self._train(executor, *each), wanted)
            try:
                runs = list(Bar(finished, total=len(wanted), desc="runs", unit="run"))
            except BaseException:
                executor.stop()  # otherwise leaving the pool would wait for the running ones
                raise
        return {arm: [run for (name, _), run in zip(wanted, runs, strict=True) if name == arm] for arm in self.flags}

    def _train(self, executor: Executor, arm: str, seed: int) -> Trained:
        folder = self.root / arm.lower() / f"seed-{seed}"
        own = [f"--run_dir={folder}", f"--seed_everything={seed}", f"--data.shuffle_seed={seed}"]
        command = [*PROGRAM, "fit", *self.flags[arm], *own, f"--model.sampling.seed={seed}"]
        log = folder.with_suffix(".log")
        if code := executor.run(command, {}, log):
            raise RunStopped(f"the run {arm}, seed {seed}, ended with {code}:\n{tail(log)}")
        return Trained(seed, folder)


SFT, SAE, GRPO, SAERL = (f"configs/demo/{name}.yaml" for name in ("sft", "sae", "grpo", "saerl"))
ARMS = {"GRPO": [TASKS, GRPO], "SAERL": [TASKS, GRPO, SAERL]}


def demo(folder: str = "runs/demo", samples: Count = 16, seeds: Count = 2, jobs: Workers = 2, seed: Seed = 0) -> None:
    """Trains a tiny policy by GRPO with and without SAERL's operations on one budget, and prints both results.

    Args:
        folder: Folder of the policy and the runs; an older demo there is deleted.
        samples: Number of completions of each question when accuracy is measured (avg@k).
        seeds: Number of runs of each arm; they differ in order and sampling, not in their initial policy.
        jobs: Number of runs at a time.
        seed: Seed of the policy's weights and its cold start; the arms' seeds count up from this number.

    Raises:
        RunStopped: if the interval of the gain by plain GRPO does not lie above 0.
    """
    require_arguments(demo, locals())
    started, root = time.monotonic(), Path(folder)
    _clear(root)
    _say("1/6  a policy of about a million random weights, and supervised steps to a partial skill")
    tiny_policy(str(root / "policy"), seed)
    _fit([TASKS, SFT], root / "sft", seed, [f"--model.policy.path={root / 'policy'}"])
    export(str(root / "sft/checkpoints/last.ckpt"), str(root / "cold"), str(root / "policy"))
    _say("2/6  a sparse autoencoder on the middle of that policy")
    reader = [f"--data.model.path={root / 'cold'}", f"--model.save_to={root / 'sae'}"]
    _fit(["configs/sae/topk.yaml", SAE], root / "sae-run", seed, reader)
    _say("3/6  pass rates of a sample of the prompts, for the difficulty probe")
    _tool("label", ARMS["GRPO"], root, seed, [f"--out={root / 'labels.jsonl'}", "--prompts=512"])
    _say(f"4/6  the plan: {root / 'plan/plan.html'}")
    _tool("plan", ARMS["SAERL"], root, seed, [f"--out={root / 'plan'}", *_signals(root)])
    _say(f"5/6  {len(ARMS) * seeds} runs of GRPO: {' and '.join(ARMS)}, seeds {seed} to {seed + seeds - 1}")
    arms = Arms(root, {name: [*_flags(configs), *_common(root), *_extra(name, root)] for name, configs in ARMS.items()})
    runs = arms.train(range(seed, seed + seeds), jobs)
    _say("6/6  questions that were asked nowhere else")
    before = _measure(root / "cold-test", root, samples, None)
    after = {name: [_measure(each.folder / "test", root, samples, each) for each in runs[name]] for name in ARMS}
    print_tasks(before, after, samples)
    print_arms(before, after, runs, samples)
    print(
        f"run folders under {root}: config.yaml, csv/, completions.jsonl; {(time.monotonic() - started) / 60:.1f} minutes"
    )
    _require_gain(before, after["GRPO"])


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _clear(root: Path) -> None:
    """Deletes the files of an older demo, and no others in the folder."""
    for part in ("policy", "sft", "cold", "sae", "sae-run", "signals", "plan", "cold-test", *(n.lower() for n in ARMS)):
        shutil.rmtree(root / part, ignore_errors=True)
    (root / "labels.jsonl").unlink(missing_ok=True)


def _flags(configs: list[str]) -> list[str]:
    return [part for config in configs for part in ("-c", config)]


def _common(root: Path) -> list[str]:
    return [f"--model.policy.path={root / 'cold'}"]


def _signals(root: Path) -> list[str]:
    """Flags for this demo's files, if its folder is not the one that the configs name."""
    return [
        f"--data.signals.model.path={root / 'cold'}",
        f"--data.signals.sae.path={root / 'sae'}",
        f"--data.signal_cache={root / 'signals'}",
        f"--data.labels={root / 'labels.jsonl'}",
    ]


def _extra(arm: str, root: Path) -> list[str]:
    return _signals(root) if SAERL in ARMS[arm] else []


def _fit(configs: list[str], run_dir: Path, seed: int, more: list[str]) -> None:
    cli.run(["fit", *_flags(configs), f"--run_dir={run_dir}", f"--seed_everything={seed}", *more])


def _tool(tool: str, configs: list[str], root: Path, seed: int, more: list[str]) -> None:
    quiet = [f"--run_dir={root / tool}", f"--seed_everything={seed}", "--trainer.logger=false"]
    cli.run([tool, *_flags(configs), *_common(root), *quiet, *more])


def _measure(run_dir: Path, root: Path, samples: int, trained: Trained | None) -> Measured:
    """Measures accuracy on the test questions: of a run's last weights, or of the initial policy."""
    sampling = [f"--data.val_sampling.group_size={samples}", "--trainer.logger=false", "--verbose=false"]
    weights = [] if trained is None else [f"--ckpt_path={trained.checkpoint}"]
    tested = cli.run(["test", *_flags(ARMS["GRPO"]), *_common(root), f"--run_dir={run_dir}", *sampling, *weights])
    accuracy = tested.model.accuracy["demo"]
    return Measured(accuracy.per_question().numpy(), accuracy.topic_of_question())


def _require_gain(before: Measured, after: list[Measured]) -> None:
    gain = sum(each.accuracy for each in after) / len(after) - before.accuracy
    low, high = bootstrap_interval(gain)
    if low <= 0:
        raise RunStopped(f"GRPO did not improve the policy: the difference's interval is [{low:+.3f}, {high:+.3f}]")
