"""Replay: a step also trains on groups of earlier steps, drawn at random until they are too old, with old log-probabilities.

P groups of a step, G completions a prompt.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from saerl_lightning.ranges import Count, Seed, ShareBelow1, require_in_range
from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.lookahead.checkpoint import trimmed

Key = tuple[int, int, int]  # optimiser steps done when the group was sampled, its place in the batch, its pool row


@dataclass(frozen=True)
class StoredGroup:
    """A group that was trained on, and when and where it was sampled."""

    key: Key
    group: GradedGroups


class Replay:
    """Adds groups of earlier steps to each step, drawn at random from the latest ones that varied.

    A replayed completion's ratio is taken against the log-probabilities that it was sampled with. The latest group of a
    prompt replaces its earlier ones, and prompts of the present step are not replayed. `data.batch_size` is the number
    of fresh prompts, which does not change: to train on as many completions as without replay, lower it. Each process
    keeps its own groups, and all draw from the same list. (Source: rollout replay of DOTS, arXiv 2506.05316, and its code:
    half of a step, 512 groups, without those that are all right or all wrong. The largest age is ours, after the
    eviction of arXiv 2606.04560.)

    Args:
        share: Share of a step's groups that are replayed, once enough are stored.
        size: Largest number of stored groups, over all processes; the oldest are dropped.
        max_age: Largest number of optimiser steps since a group was sampled; older ones are dropped.
        seed: Seed of the random draws.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, share: ShareBelow1 = 0.5, size: Count = 512, max_age: Count = 32, seed: Seed = 0) -> None:
        self.share = share
        self.size = size
        self.max_age = max_age
        self.seed = seed
        self.stored: list[StoredGroup] = []
        self.report: dict[str, float] = {}
        require_in_range(self)

    def mix(self, fresh: GradedGroups, step: int, ranks: int = 1) -> GradedGroups:
        """Returns the fresh groups and the replayed ones behind them; then stores the fresh ones that vary.

        Args:
            fresh: This process's groups.
            step: Optimiser steps done before this one.
            ranks: Number of processes; all must call this.
        """
        rows = {*itertools.chain(*gather_objects(fresh.batch.rows, ranks))}
        groups = sum(gather_objects(len(fresh.total) if fresh.kept is None else 0, ranks))
        ready = [each for each in self.stored if step - each.key[0] <= self.max_age and each.key[2] not in rows]
        keys = sorted(itertools.chain(*gather_objects([each.key for each in ready], ranks)))
        chosen = drawn(keys, replayed_groups(groups, self.share), np.random.default_rng([self.seed, step]))
        self.report = _told(chosen, groups, step)
        mine = sorted((each for each in ready if each.key in chosen), key=lambda each: each.key)
        self._store(fresh, step, rows, ranks)
        self.report["replay/stored"] = float(sum(gather_objects(len(self.stored), ranks)))
        return joined(fresh, [each.group for each in mine]) if mine else fresh

    def _store(self, fresh: GradedGroups, step: int, rows: set[int], ranks: int) -> None:
        """Adds this process's groups that vary, and drops what is too old, replaced, or more than the size."""
        keys = [(step, place, row) for place, row in zip(fresh.batch.places, fresh.batch.rows, strict=True)]
        varied = fresh.varied.nonzero().flatten().tolist()
        own = [StoredGroup(keys[group], alone(fresh, group)) for group in varied]
        replaced = {*itertools.chain(*gather_objects([each.key[2] for each in own], ranks))}
        kept = [each for each in self.stored if each.key[2] not in replaced and step - each.key[0] < self.max_age]
        found = sorted(itertools.chain(*gather_objects([each.key for each in (*kept, *own)], ranks)))
        newest = {*found[-self.size :]}
        self.stored = [each for each in (*kept, *own) if each.key in newest]


def replayed_groups(fresh: int, share: float) -> int:
    """Number of replayed groups that are a share of a step with that many fresh ones, rounded down."""
    return int(share * fresh / (1 - share) + 1e-9)


def drawn(keys: list[Key], count: int, random: np.random.Generator) -> set[Key]:
    """Draws keys without replacement; all of them if there are not more than the count."""
    places = random.choice(len(keys), min(count, len(keys)), replace=False) if keys else []
    return {keys[place] for place in places}


def alone(groups: GradedGroups, group: int) -> GradedGroups:
    """Returns one group, with rows as wide as its longest."""
    one = groups.of_groups([group])
    return replace(one, rollouts=trimmed(one.rollouts), rounds=[0])


def joined(fresh: GradedGroups, replayed: list[GradedGroups]) -> GradedGroups:
    """Puts replayed groups behind the fresh ones, and marks them.

    Args:
        fresh: Fresh groups; left out if none of their completions is trained on.
        replayed: Groups of earlier steps, at least one.
    """
    parts = replayed if fresh.kept is not None else [fresh, *replayed]
    made = GradedGroups.join(parts)
    marks = torch.arange(len(made.total)) >= len(made.total) - len(replayed)
    return replace(made, replayed=marks, spent=fresh.spent, parts=fresh.parts)


def _told(chosen: set[Key], fresh: int, step: int) -> dict[str, float]:
    """Share of replayed groups in the step, and their ages in optimiser steps; of no group the age is 0."""
    ages = [step - key[0] for key in chosen]
    return {
        "replay/share": len(ages) / max(1, len(ages) + fresh),
        "replay/age": sum(ages) / max(1, len(ages)),
        "replay/age/max": float(max(ages, default=0)),
    }
