"""Knapsack: divides a step's completions over its prompts by what each is expected to teach."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom2, require_in_range
from saerl_lightning.records import Outcomes, PromptBatch
from saerl_lightning.training.rounds.rounds import Filled, Rounds, StepSource


class Knapsack(Rounds):
    """Divides a step's completions over its prompts: more for those that would otherwise hardly vary.

    The value of N completions at pass rate p is (1 - p^N - (1 - p)^N) p (1 - p)^2, the chance that they vary times what
    a group then teaches, and the sum of values is maximised. As many completions are sampled as without it. p is what
    `data.online` predicts; without a prediction it is the prompt's latest measured rate. A prompt without either gets
    `sampling.group_size` completions, so nothing changes in the first epoch of a run without `data.online`. Completions
    that have no value anywhere go to prompts at p = 0. (Source: arXiv 2509.25849, by secondary sources: value, limits,
    what is left over. They solve it by dynamic programming; values are concave in N, so taking the best next completion
    is exact. Units and unknown prompts are ours.)

    Args:
        unit: Number of completions that are dealt at once; divides `sampling.group_size`.
        least: Smallest number of completions of a prompt.
        most: Largest number of completions of a prompt.

    Raises:
        InputError: if a number is out of range, or `most` below `least`.
    """

    def __init__(self, unit: Count = 2, least: CountFrom2 = 2, most: CountFrom2 = 128) -> None:
        self.unit = unit
        self.least = least
        self.most = most
        self._rates: dict[str, float] = {}  # latest measured pass rate of each prompt, by uid
        require_in_range(self)
        if most < least:
            raise InputError(f"Knapsack.most is {most}, below least {least}; write {least} or more")

    @property
    def equal_groups(self) -> bool:
        """Whether all prompts get as many completions: they do not."""
        return False

    def check(self, group_size: int) -> None:
        """Refuses a group size that is outside the limits, or no multiple of the unit."""
        if group_size % self.unit:
            raise InputError(
                f"Knapsack.unit is {self.unit}, which does not divide sampling.group_size {group_size}; write one that does"
            )
        if not units(self.least, self.unit) * self.unit <= group_size <= self.most:
            raise InputError(
                f"sampling.group_size is {group_size}, outside of Knapsack's least {self.least} (in units of {self.unit}) "
                f"and most {self.most}; write another of them"
            )

    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Divides the completions of all processes' prompts, and samples this process's."""
        predicted = source.pass_rates(batch.rows)
        own = [self._rates.get(prompt.uid, np.nan) for prompt in batch.prompts]
        rates = np.where(np.isnan(predicted), own, predicted)
        known = dict(itertools.chain(*source.gather([*zip(batch.places, rates.tolist(), strict=True)])))
        # The first process decides for all: powers may differ in their last bit between machines.
        dealt = source.gather(self.deal(known, source.group_size))[0]
        prompts = [p for p, place in enumerate(batch.places) for _ in range(dealt[place])]
        places = [place + len(known) * unit for place in batch.places for unit in range(dealt[place])]
        groups = source.sample(batch.of_prompts(prompts, places), 0, self.unit)
        assert groups is not None  # every prompt has a completion
        return groups, groups

    def deal(self, rates: Mapping[int, float], group_size: int) -> dict[int, int]:
        """Divides a step's completions, in units.

        Args:
            rates: Pass rate of each prompt of all processes by its place; NaN if unknown.
            group_size: Number of completions a prompt that are there to be divided.
        """
        places = sorted(place for place, rate in rates.items() if not np.isnan(rate))
        known = np.array([rates[place] for place in places])
        limits = (self.least, min(self.most, group_size * max(1, len(places))))
        dealt = allocate(known, group_size * len(places), self.unit, *limits)
        return dict.fromkeys(rates, group_size // self.unit) | dict(zip(places, dealt, strict=True))

    def observe(self, outcomes: Outcomes) -> None:
        """Notes the pass rate of each prompt that has a graded answer; one outside of 0 to 1 counts as the nearer end."""
        rates = zip(outcomes.uids, outcomes.pass_rate.clamp(0, 1).tolist(), strict=True)
        self._rates |= {uid: rate for uid, rate in rates if not np.isnan(rate)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the latest rates."""
        return {"rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the latest rates."""
        self._rates = dict(state.get("rates", {}))


def units(count: int, unit: int) -> int:
    """Number of units that hold at least a number of completions."""
    return -(-count // unit)


def worth(rate: float, count: int) -> float:
    """Expected value of a number of completions: (1 - p^N - (1 - p)^N) p (1 - p)^2."""
    return (1 - rate**count - (1 - rate) ** count) * rate * (1 - rate) ** 2


def allocate(
    rates: Float[np.ndarray, " P"] | Sequence[float], budget: int, unit: int = 1, least: int = 2, most: int = 128
) -> list[int]:
    """Divides a budget of completions over prompts so that the sum of their values is largest.

    Values are concave in the number of completions from `least` on, so dealing unit after unit to the largest gain is
    exact. Among equal gains the first prompt wins. Units without any gain go to prompts at rate 0, then to all, the ones
    with the fewest first.

    Args:
        rates: Pass rate of each prompt, from 0 to 1.
        budget: Number of completions, a multiple of the unit and at least `least` a prompt.
        unit: Number of completions that are dealt at once.
        least: Smallest number of completions of a prompt.
        most: Largest number of completions of a prompt.

    Returns:
        Number of units of each prompt.
    """
    lowest, highest = units(least, unit), most // unit
    dealt = [lowest] * len(rates)

    def gain(prompt: int) -> float:
        rate, count = float(rates[prompt]), dealt[prompt] * unit
        return worth(rate, count + unit) - worth(rate, count)

    heap = [(-gain(prompt), prompt) for prompt in range(len(dealt)) if lowest < highest]
    heapq.heapify(heap)
    left = budget // unit - sum(dealt)
    while left and heap and heap[0][0] < 0:
        _, prompt = heapq.heappop(heap)
        dealt[prompt] += 1
        left -= 1
        if dealt[prompt] < highest:
            heapq.heappush(heap, (-gain(prompt), prompt))
    return _with_rest(dealt, [float(rate) > 0 for rate in rates], left, highest)


def _with_rest(dealt: list[int], teaches: list[bool], left: int, highest: int) -> list[int]:
    """Deals what has no value: to prompts at rate 0 first."""
    order = [(teaches[prompt], dealt[prompt], prompt) for prompt in range(len(dealt)) if dealt[prompt] < highest]
    heapq.heapify(order)
    while left and order:
        taught, count, prompt = heapq.heappop(order)
        dealt[prompt] += 1
        left -= 1
        if count + 1 < highest:
            heapq.heappush(order, (taught, count + 1, prompt))
    return dealt
