"""Rounds: the interface of decisions how many completions of which prompts a step samples, and which it trains on.

P prompts of this process in a step, G completions a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.records import Outcomes, PromptBatch
from saerl_lightning.training.grading import GradedGroups


@dataclass(frozen=True)
class StepSource:
    """What a step can sample from. All processes must call each function equally often.

    `sample` takes prompts (None for none), the number of the round, and the number of completions a prompt, and returns
    graded groups. Round 0 comes first. What is sampled depends on the round and on each prompt's place, so a place must
    not stand twice in a round.
    """

    sample: Callable[[PromptBatch | None, int, int], GradedGroups | None]
    next_prompts: Callable[[Sequence[int]], PromptBatch | None]  # takes the plan's next ones, given each process's need
    gather: Callable[[Any], list[Any]]  # every process's value, in the order of processes
    pass_rates: Callable[[Sequence[int]], Float[np.ndarray, " n"]]  # predicted, by pool row; NaN where nothing predicts
    group_size: int  # completions a prompt (G) in the run's settings
    # Takes pool rows and places: prompts that the plan does not serve in this step.
    again: Callable[[Sequence[int], Sequence[int]], PromptBatch]


Filled = tuple[GradedGroups, GradedGroups]  # everything that was generated, and what to train on


class Rounds(ABC):
    """Decides how many completions of which prompts a step samples, and which it trains on.

    Whatever was sampled must be returned as generated, so that every token is charged. A prompt may stand several times
    among the groups, which are then parts of one group: its completions are compared with each other.
    """

    @property
    def equal_groups(self) -> bool:
        """Whether every prompt that is trained on has as many completions as the others."""
        return True

    def check(self, group_size: int) -> None:
        """Refuses a number of completions a prompt that can't be divided as wanted. By default refuses nothing.

        Raises:
            InputError: with what to write instead.
        """

    @abstractmethod
    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Samples and grades completions, of the batch's prompts and perhaps of the plan's next ones.

        Args:
            batch: This process's prompts.
            source: What can be sampled from.

        Returns:
            All groups that were generated, and those to train on, at least one.
        """

    def observe(self, outcomes: Outcomes) -> None:
        """Learns from what all processes generated in a step. By default nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that `observe` changes: numbers, strings, lists and tensors; by default nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; {} is the state before the first step. By default nothing."""


def refilled(first: GradedGroups, source: StepSource, max_rounds: int) -> list[GradedGroups]:
    """Samples groups of the plan's next prompts until as many vary as the first ones are.

    Processes may need different numbers of rounds, but they must request prompts together, until none needs more.

    Args:
        first: Graded groups of the batch; the others get as many completions.
        source: What can be sampled from.
        max_rounds: Largest number of rounds.

    Returns:
        The first groups, and those of each round.
    """
    parts = [first]
    missing = int((~first.varied).sum())
    for number in range(1, max_rounds + 1):
        counts = source.gather(missing)
        if not any(counts):
            break
        batch = source.next_prompts(counts)
        plan_ends = (0 if batch is None else len(batch.prompts)) < missing
        if (more := source.sample(batch, number, first.rollouts.group_size)) is not None:
            parts.append(more)
            missing -= int(more.varied.sum())
        if plan_ends:
            missing = 0  # this process asks no more
    return parts


def untrained(group: GradedGroups, size: int) -> GradedGroups:
    """Makes a group whose completions are not in the loss, for a process that has nothing else to train on.

    All processes must take part in a step, so none may be without a row.

    Args:
        group: One graded group, whose completions are repeated to fill the size.
        size: Number of completions of the new group.
    """
    alone = group.in_groups_of(1)
    made = alone.of_groups([place % len(alone.total) for place in range(size)]).in_groups_of(size)
    return made.keeping(made.total.new_zeros(made.total.shape).bool())
