"""What the policy is asked early, half way and late: one batch each, in the prompts' own words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saerl_lightning.report.ledger import excerpt
from saerl_lightning.report.planned import PlannedRun

SHOWN = 4  # prompts of a batch
LENGTH = 220


@dataclass(frozen=True)
class Glimpse:
    """Some prompts of one batch."""

    when: str
    step: int  # from 1
    prompts: list[tuple[str, str, float]]  # topic, text, difficulty


def glimpses(run: PlannedRun) -> list[Glimpse]:
    """The first, the middle and the last batch; fewer where there are fewer."""
    last = run.ledger.batches - 1
    steps = {"At the start": 0, "Half way": last // 2, "At the end": last}
    seen: dict[int, str] = {}
    for when, step in steps.items():
        seen.setdefault(step, when)
    return [Glimpse(when, step + 1, _prompts(run, step)) for step, when in sorted(seen.items())]


def _prompts(run: PlannedRun, step: int) -> list[tuple[str, str, float]]:
    rows = run.plan.batches()[step]
    chosen = rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)]
    difficulty = run.plan.difficulty
    return [
        (run.prompts[row].topic or "", excerpt(run.prompts[row].text, LENGTH), float(difficulty[row]))
        for row in chosen.tolist()
    ]
