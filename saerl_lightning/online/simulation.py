"""Simulation: plays online operations over a pool whose pass rates are known. Nothing is sampled and nothing learns.

A group's right answers are drawn from a binomial distribution, so thousands of steps take seconds. It tells how many
groups vary, and how well that is predicted; it says nothing of accuracy. N prompts in the pool, P a batch, G a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit, logit

from saerl_lightning.data.callback import DataCallback, Online
from saerl_lightning.data.revision import revise, revising
from saerl_lightning.online.rules.rule import best_first
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Count, Finite, require_in_range
from saerl_lightning.records import Outcomes, Prompt

EDGE = 0.002  # known rates of 0 and 1 are of finite samples: the true ones are this far inside


@dataclass(frozen=True)
class World:
    """The true pass rate of every prompt, and how it moves while training goes on.

    Args:
        rates: Pass rate of every prompt of the pool.
        group_size: Number of answers in a group (G).
        offset: Number that is added to every rate's logit; below 0 the pool is harder.
        shift: Number that every step adds to the logits, as a policy that gets better.
    """

    rates: Float[np.ndarray, " N"]
    group_size: Count
    offset: Finite = 0.0
    shift: Finite = 0.0

    def __post_init__(self) -> None:
        require_in_range(self)

    def at(self, step: int) -> Float[np.ndarray, " N"]:
        """Returns the pass rates at a step."""
        return expit(logit(np.clip(self.rates, EDGE, 1 - EDGE)) + self.offset + self.shift * step)


class _Oracle(Online):
    """Serves next the groups that most probably vary, by the true pass rates: the most that any belief could reach.

    Args:
        world: World that is played.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def revise(self, plan: SamplePlan, served: int) -> SamplePlan:
        """Puts the batch with the highest chances first. Steps are counted within the epoch."""
        rest = plan.rows[served:]
        p = self.world.at(served // plan.batch_size)[rest]
        chance = 1 - p**self.world.group_size - (1 - p) ** self.world.group_size
        return plan.go_on(served, rest[best_first(chance, plan.batch_size)])


def oracle(world: World) -> Online:
    """Returns the operation that knows a world's pass rates. It is no part of a config."""
    return _Oracle(world)


def play(
    operations: Mapping[str, DataCallback],
    plan: SamplePlan,
    prompts: Sequence[Prompt],
    world: World,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Plays a plan and its operations for some steps.

    Args:
        operations: Operations by slot, which have made the plan. They are copied, so that each play begins anew.
        plan: Plan over the pool.
        prompts: Prompts of the pool.
        world: True pass rates.
        steps: Number of batches; after an epoch's last batch the next epoch begins.
        seed: Seed of the answers.

    Returns:
        Means over the steps: `effective` (share of groups that vary) and what the slot `online` says of itself.
    """
    operations, random = deepcopy(dict(operations)), np.random.default_rng(seed)
    deciding, online = revising(operations), operations.get("online")
    handed_out, seen = plan.rows[:0], []
    for step in range(steps):
        current = revise(deciding, plan, handed_out)
        if len(current.rows) - len(handed_out) < plan.batch_size:
            handed_out = plan.rows[:0]
            current = revise(deciding, plan, handed_out)
        rows = current.rows[len(handed_out) : len(handed_out) + plan.batch_size]
        outcomes = _answered(rows, prompts, world, step, random)
        for operation in operations.values():
            operation.observe(outcomes)
        handed_out = np.concatenate([handed_out, rows])
        said = online.metrics() if online is not None else {}
        seen.append({**said, "effective": float(outcomes.varied.double().mean())})
    return {name: float(np.mean([each[name] for each in seen if name in each])) for name in seen[-1]}


def _answered(
    rows: Int[np.ndarray, " P"],
    prompts: Sequence[Prompt],
    world: World,
    step: int,
    random: np.random.Generator,
) -> Outcomes:
    group = world.group_size
    right = torch.from_numpy(random.binomial(group, world.at(step)[rows]).astype(np.float32))
    rewards = (torch.arange(group)[None] < right[:, None]).float()  # (P, G)
    graded = torch.full((len(rows),), group)
    varied = (right > 0) & (right < group)
    return Outcomes([prompts[row].uid for row in rows.tolist()], rewards, right, graded, varied, graded)
