"""The whole method, small and real: a tiny policy, its SAE, signals, labels, a plan, and GRPO with and without them.

Nothing is downloaded and no GPU is needed. It walks the same path as a real run: YAML, prompts, engine, graders,
checkpoints, export. It can show that the path works and what vanilla GRPO earns here; two arms on a handful of seeds of a
tiny policy say little about which arm is better elsewhere.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from saerl_lightning.cli import run
from saerl_lightning.errors import RunStopped
from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.ranges import Count, Seed, Workers, require_arguments
from saerl_lightning.tools.demo_arms import Arms, Trained
from saerl_lightning.tools.demo_report import Measured, print_arms, print_tasks
from saerl_lightning.tools.export import export
from saerl_lightning.tools.tiny_policy import TASKS, tiny_policy

SFT, SAE, GRPO, SAERL = (f"configs/demo/{name}.yaml" for name in ("sft", "sae", "grpo", "saerl"))
ARMS = {"GRPO": [TASKS, GRPO], "SAERL": [TASKS, GRPO, SAERL]}


def demo(folder: str = "runs/demo", samples: Count = 16, seeds: Count = 2, jobs: Workers = 2, seed: Seed = 0) -> None:
    """Trains a tiny policy by GRPO with and without SAERL's operations, on one budget, and prints both beside each other.

    Args:
        folder: where the policy and the runs go; an older demo there is deleted.
        samples: completions a question that accuracy is measured on (avg@k).
        seeds: runs of each arm; they differ in order and sampling, not in the policy they start from.
        jobs: runs at a time.
        seed: of the policy's weights and its cold start; the arms' seeds count up from it.

    Raises:
        RunStopped: if vanilla GRPO did not improve the policy beyond the interval of the difference.
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
    """Deletes what an older demo wrote, and nothing else that may lie there."""
    for part in ("policy", "sft", "cold", "sae", "sae-run", "signals", "plan", "cold-test", *(n.lower() for n in ARMS)):
        shutil.rmtree(root / part, ignore_errors=True)
    (root / "labels.jsonl").unlink(missing_ok=True)


def _flags(configs: list[str]) -> list[str]:
    return [part for config in configs for part in ("-c", config)]


def _common(root: Path) -> list[str]:
    return [f"--model.policy.path={root / 'cold'}"]


def _signals(root: Path) -> list[str]:
    """The files of this demo, where its folder is not the one that the configs name."""
    return [
        f"--data.signals.model.path={root / 'cold'}",
        f"--data.signals.sae.path={root / 'sae'}",
        f"--data.signal_cache={root / 'signals'}",
        f"--data.labels={root / 'labels.jsonl'}",
    ]


def _extra(arm: str, root: Path) -> list[str]:
    return _signals(root) if SAERL in ARMS[arm] else []


def _fit(configs: list[str], run_dir: Path, seed: int, more: list[str]) -> None:
    run(["fit", *_flags(configs), f"--run_dir={run_dir}", f"--seed_everything={seed}", *more])


def _tool(tool: str, configs: list[str], root: Path, seed: int, more: list[str]) -> None:
    quiet = [f"--run_dir={root / tool}", f"--seed_everything={seed}", "--trainer.logger=false"]
    run([tool, *_flags(configs), *_common(root), *quiet, *more])


def _measure(run_dir: Path, root: Path, samples: int, trained: Trained | None) -> Measured:
    """Accuracy on the test questions: of a run's last weights, or of the policy that all runs start from."""
    sampling = [f"--data.val_sampling.group_size={samples}", "--trainer.logger=false", "--verbose=false"]
    weights = [] if trained is None else [f"--ckpt_path={trained.checkpoint}"]
    cli = run(["test", *_flags(ARMS["GRPO"]), *_common(root), f"--run_dir={run_dir}", *sampling, *weights])
    accuracy = cli.model.accuracy["demo"]
    return Measured(accuracy.per_question().numpy(), accuracy.topic_of_question())


def _require_gain(before: Measured, after: list[Measured]) -> None:
    gain = sum(each.accuracy for each in after) / len(after) - before.accuracy
    low, high = bootstrap_interval(gain)
    if low <= 0:
        raise RunStopped(f"GRPO did not improve the policy: the difference's interval is [{low:+.3f}, {high:+.3f}]")
