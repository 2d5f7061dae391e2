"""Writes a study's folder with numbers that can be checked by hand; nothing is trained.

A run's curve is a list of values at steps 0, 10, 20, …. Its questions all shift alike: each is its own base plus the
curve's value, so that differences between runs hold for every question.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import yaml

from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.ledger import FILE, Ledger
from saerl_lightning.records import Prompt

METRIC = "val/macro/avg@k"
EVERY = 10  # steps between validations
TOPICS = ("algebra", "geometry", None)
SECONDS = {"generate": 2.0, "forward": 0.5, "backward": 0.5, "optimizer": 0.25, "sync": 0.25}  # of each step


@dataclass(frozen=True)
class Arm:
    """What each of an arm's runs does: one curve a seed; null for a run that has not begun."""

    curves: Sequence[Sequence[float] | None]
    description: str = ""
    flags: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)  # data/… metrics
    plan: SamplePlan | None = None
    failed: Mapping[int, str] = field(default_factory=dict)  # error by seed
    running: Sequence[int] = ()  # seeds
    tokens: float = 100.0  # sampled a second, of 2 a step
    varied: Sequence[float] = ()  # groups with variance in each step, by seed; () logs none


def write_study(
    root: Path,
    arms: Mapping[str, Arm],
    primary: Sequence[str],
    questions: int = 6,
    stages: Mapping[str, float] | None = None,
    made: Sequence[Mapping[str, object]] = (),
    budget: Mapping[str, int] | None = None,
    more: Mapping[str, object] | None = None,
) -> Path:
    """Writes the folder; the first arm is the baseline, the budget by default the longest curve's steps.

    `more` are further keys of the study's file.
    """
    baseline, seeds = next(iter(arms)), len(next(iter(arms.values())).curves)
    steps = EVERY * (max(len(curve) for arm in arms.values() for curve in arm.curves if curve) - 1)
    spec = {
        "name": root.name,
        "base": ["configs/grpo.yaml"],
        "arms": {
            name: {"configs": [], "flags": list(arm.flags), "description": arm.description}
            for name, arm in arms.items()
        },
        "seeds": list(range(seeds)),
        "budget": dict(budget or {"steps": steps}),
        "baseline": baseline,
        "metric": METRIC,
        "primary": list(primary),
        "shared": list(made),
        "share": [stage["name"] for stage in made],
        **(more or {}),
    }
    root.mkdir(parents=True)
    (root / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    about = {"digest": "feedbeef", "name": root.name, "created": "2026-11-22", "arms": {}}
    (root / "study.json").write_text(json.dumps(about))
    (root / "shared").mkdir()
    (root / "shared" / "stages.json").write_text(json.dumps(dict(stages or {})))
    for name, arm in arms.items():
        for seed, curve in enumerate(arm.curves):
            if curve is not None:
                _write_run(root / name / f"seed-{seed}", name, seed, arm, curve, questions)
    return root


def small_plan(prompts: int = 24, batch_size: int = 4) -> SamplePlan:
    """Three clusters, and difficulty that rises with the position."""
    position = np.arange(prompts)
    return SamplePlan(
        position, batch_size, position % 3, position / prompts, np.full(prompts, np.nan), np.full(prompts, -1), {}
    )


def _write_run(folder: Path, name: str, seed: int, arm: Arm, curve: Sequence[float], questions: int) -> None:
    (folder / "csv" / "version_0").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "config.yaml").write_text(f"seed_everything: {seed}\n")
    varied = {"groups/effective": arm.varied[seed]} if arm.varied else {}
    rows = _metrics(curve, arm.tokens, {f"data/{key}": value for key, value in arm.scores.items()}, varied)
    with (folder / "csv" / "version_0" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    _questions(curve, questions).to_parquet(folder / "questions.parquet")
    state = "failed" if seed in arm.failed else "running" if seed in arm.running else "finished"
    steps = EVERY * (len(curve) - 1)
    record = {
        "arm": name, "seed": seed, "state": state, "command": [], "started": "2026-11-22T10:00:00+00:00",
        "seconds": 4.0 * steps, "exit": {"failed": 1, "finished": 0}.get(state), "error": arm.failed.get(seed, ""),
        "costs": {
            "generate_s": 2.0 * steps, "train_s": 1.25 * steps, "other_s": 0.25 * steps,
            "sampled_tokens": 2 * arm.tokens * steps, "trained_tokens": 400.0 * steps, "steps": float(steps),
        },
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if arm.plan is not None:
        pool = arm.plan.cluster.shape[0]
        prompts = [Prompt.asking(f"p{i}", f"What is {i}?", "1") for i in range(pool)]
        Ledger.of(arm.plan, prompts, "plan").write(folder / FILE)


def _metrics(
    curve: Sequence[float], tokens: float, scores: Mapping[str, float], varied: Mapping[str, float]
) -> list[dict[str, float]]:
    """Rows as Lightning's CSV logger writes them: steps count from 0, and validations stand at the step just done."""
    rows: list[dict[str, float]] = [{"step": 0, METRIC: curve[0]}]
    for step in range(EVERY * (len(curve) - 1)):
        times = {f"time/{phase}": seconds for phase, seconds in SECONDS.items()}
        speed = {"throughput/sampled_tokens_per_s": tokens, "throughput/trained_tokens_per_s": 400.0}
        rows.append(
            {"step": step, "loss": 0.0, "reward/mean": 0.5, **times, **speed, **varied, **(scores if step == 0 else {})}
        )
        if (step + 1) % EVERY == 0:
            rows.append({"step": step, METRIC: curve[(step + 1) // EVERY]})
    return rows


def _questions(curve: Sequence[float], questions: int) -> pandas.DataFrame:
    return pandas.DataFrame(
        [
            {
                "set": "demo",
                "step": EVERY * k,
                "uid": f"q{question}",
                "topic": TOPICS[question % 3],
                "level": float(question % 2),
                "accuracy": value + 0.02 * (question - (questions - 1) / 2),  # the set's mean is the curve's value
            }
            for k, value in enumerate(curve)
            for question in range(questions)
        ]
    )
