"""The main job, small and whole: a tiny policy is made, learns a little by imitation, then by GRPO, and is measured.

Nothing is downloaded and no GPU is needed. It walks the same path as a real run: YAML, prompts, engine, graders,
checkpoints, export.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from saerl_lightning.cli import run
from saerl_lightning.errors import RunStopped
from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.policy.tiny import build_tiny_policy
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.records import Prompt
from saerl_lightning.tools.export import export

TASKS, SFT, GRPO = (f"configs/demo/{name}.yaml" for name in ("tasks", "sft", "grpo"))


@dataclass(frozen=True)
class Measured:
    """Accuracy of a policy on the unseen questions, the same questions in the same order each time."""

    accuracy: Float[np.ndarray, " Q"]  # avg@k of each question
    topics: list[str]  # Q


def demo(folder: str = "runs/demo", samples: int = 16, seed: int = 0) -> None:
    """Trains the tiny policy and prints its accuracy before and after GRPO, by task, with 95 % intervals.

    Args:
        folder: where the policy and the runs go; an older demo there is deleted.
        samples: completions a question that accuracy is measured on (avg@k).
        seed: of weights, order and sampling.

    Raises:
        RunStopped: if GRPO did not improve the policy beyond the interval of the difference.
    """
    started, root = time.monotonic(), Path(folder)
    for part in ("policy", "sft", "cold", "before", "grpo", "trained", "after"):
        shutil.rmtree(root / part, ignore_errors=True)
    _say("1/4  a policy of about a million random weights")
    build_tiny_policy(str(root / "policy"), _corpus(), seed=seed)
    _say("2/4  cold start: supervised steps to a partial skill")
    _fit(SFT, root / "sft", root / "policy", seed)
    export(str(root / "sft/checkpoints/last.ckpt"), str(root / "cold"))
    before = _measure(root / "cold", root / "before", samples, seed)
    _say(f"3/4  GRPO, from avg@{samples} = {before.accuracy.mean():.3f}")
    _fit(GRPO, root / "grpo", root / "cold", seed)
    export(str(root / "grpo/checkpoints/last.ckpt"), str(root / "trained"))
    _say("4/4  the same questions again")
    after = _measure(root / "trained", root / "after", samples, seed)
    _report(before, after, samples, root, time.monotonic() - started)


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _fit(config: str, run_dir: Path, policy: Path, seed: int) -> None:
    run(["fit", "-c", TASKS, "-c", config, *_common(run_dir, policy, seed)])


def _measure(policy: Path, run_dir: Path, samples: int, seed: int) -> Measured:
    sampling = [f"--data.val_sampling.group_size={samples}", "--trainer.logger=false", "--verbose=false"]
    cli = run(["test", "-c", TASKS, "-c", GRPO, *_common(run_dir, policy, seed), *sampling])
    accuracy = cli.model.accuracy["demo"]
    topics, unseen = accuracy.topic_of_question(), _unseen()
    return Measured(accuracy.per_question().numpy()[unseen], [topics[question] for question in unseen])


def _common(run_dir: Path, policy: Path, seed: int) -> list[str]:
    return [f"--run_dir={run_dir}", f"--model.policy.path={policy}", f"--seed_everything={seed}"]


def _prompts(*path: str) -> list[Prompt]:
    """The prompts of one of the demo's sets, as its configuration draws them."""
    source = yaml.safe_load(Path(TASKS).read_text())["data"]["init_args"]
    for key in path:
        source = source[key]
    return ReasoningGymPrompts(**source["init_args"]).load()


def _corpus() -> list[str]:
    """The training prompts' own texts: what the tokenizer's merges are learned from."""
    return [f"{prompt.text} {prompt.answer}" for prompt in _prompts("train")]


def _unseen() -> list[int]:
    """Positions of the test questions that neither training nor validation asks too: small tasks repeat themselves."""
    asked = {prompt.text for prompt in [*_prompts("train"), *_prompts("val", "demo")]}
    return [position for position, prompt in enumerate(_prompts("test", "demo")) if prompt.text not in asked]


def _report(before: Measured, after: Measured, samples: int, root: Path, seconds: float) -> None:
    table = Table(title=f"avg@{samples} on questions asked nowhere else, 95 % bootstrap intervals over questions")
    for column in ("task", "questions", "before GRPO", "after GRPO", "difference (paired)"):
        table.add_column(column, justify="left" if column == "task" else "right")
    topics = np.array(before.topics)
    for task in [*sorted(set(topics)), "all"]:
        rows = np.ones(len(topics), dtype=bool) if task == "all" else topics == task
        b, a = before.accuracy[rows], after.accuracy[rows]
        table.add_row(task, str(rows.sum()), _interval(b), _interval(a), _interval(a - b, sign=True))
    Console(width=120).print(table)
    low, high = bootstrap_interval(after.accuracy - before.accuracy)
    print(
        f"run folder: {root / 'grpo'} (config.yaml, csv/, completions.jsonl, checkpoints/); {seconds / 60:.1f} minutes"
    )
    if low <= 0:
        raise RunStopped(f"GRPO did not improve the policy: the difference's interval is [{low:+.3f}, {high:+.3f}]")


def _interval(values: Float[np.ndarray, " Q"], sign: bool = False) -> str:
    low, high = bootstrap_interval(values)
    form = "+.3f" if sign else ".3f"
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"
