"""Mixer: the interface of decisions in which proportions domains are served. D domains, W latest results of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, Positive, ShareBelow1


@dataclass(frozen=True)
class DomainResults:
    """What was measured of every domain so far.

    A result is the mean over a domain's graded groups in one step. Steps without such a group give it none.
    """

    names: tuple[str, ...]  # D
    sizes: Int[np.ndarray, " D"]  # number of planned prompts
    groups: Int[np.ndarray, " D"]  # number of graded groups so far
    pass_rate: Float[np.ndarray, "D W"]  # latest results, the newest last; NaN in front where there are fewer
    advantage: Float[np.ndarray, "D W"]  # the same of the mean |advantage|, relative to the group
    steps: int  # number of steps learned from

    @property
    def natural(self) -> Float[np.ndarray, " D"]:
        """Proportions of the domains in the plan."""
        return self.sizes / self.sizes.sum()

    @classmethod
    def none(cls, names: Sequence[str], sizes: Int[np.ndarray, " D"], kept: int) -> DomainResults:
        """Returns the record before training.

        Args:
            names: Names of the domains.
            sizes: Number of planned prompts of each domain.
            kept: Number of latest results of each domain that are kept (W).
        """
        nothing = np.full((len(sizes), kept), np.nan)
        return cls(tuple(names), sizes, np.zeros_like(sizes), nothing, nothing, 0)

    def after(
        self,
        domain: Int[np.ndarray, " P"],
        pass_rate: Float[np.ndarray, " P"],
        advantage: Float[np.ndarray, " P"],
    ) -> DomainResults:
        """Returns the record after one more step.

        Args:
            domain: Domain of each graded group of the step.
            pass_rate: Pass rate of each group.
            advantage: Mean |advantage| of each group.
        """
        counts = np.bincount(domain, minlength=len(self.sizes))

        def pushed(results: Float[np.ndarray, "D W"], values: Float[np.ndarray, " P"]) -> Float[np.ndarray, "D W"]:
            mean = np.bincount(domain, values, len(counts)) / np.maximum(counts, 1)
            return np.where(counts[:, None] > 0, np.concatenate([results[:, 1:], mean[:, None]], 1), results)

        return replace(
            self,
            groups=self.groups + counts,
            pass_rate=pushed(self.pass_rate, pass_rate),
            advantage=pushed(self.advantage, advantage),
            steps=self.steps + 1,
        )


class Mixer(ABC):
    """Sets the proportions in which domains are served next. A pure function; the constructor only stores its arguments."""

    @property
    def kept(self) -> int:
        """Number of latest results of each domain that are read (W)."""
        return 1

    def check(self, names: Sequence[str]) -> None:
        """Refuses domains that can't be mixed so. By default refuses nothing.

        Args:
            names: Names of the domains (D).

        Raises:
            InputError: with what to write instead.
        """

    @abstractmethod
    def shares(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Returns the proportion of each domain, from 0 to 1, with sum 1."""


class ScoredMixer(Mixer):
    """Serves domains in proportion to softmax(score / temperature), each at least with the floor.

    Proportions below the floor are raised to it, then all are divided by their sum, so that a raised one ends a little
    below it. In the first steps the domains keep their proportions in the plan.

    A subclass stores its own arguments and passes the others on: `super().__init__(**common)`.

    Args:
        temperature: Temperature of the softmax over the domains' scores; lower ones prefer the best domain more.
        floor: Proportion that every domain gets at least, before all are divided by their sum.
        window: Number of a domain's latest results that are read.
        warmup: Number of steps in which the domains keep their proportions in the plan.
    """

    def __init__(
        self, temperature: Positive = 1.0, floor: ShareBelow1 = 0.05, window: Count = 50, warmup: CountFrom0 = 5
    ) -> None:
        self.temperature = temperature
        self.floor = floor
        self.window = window
        self.warmup = warmup

    @property
    def kept(self) -> int:
        """The window."""
        return self.window

    def check(self, names: Sequence[str]) -> None:
        """Refuses a floor that leaves nothing to decide."""
        if self.floor * len(names) >= 1:
            raise InputError(
                f"{type(self).__name__}.floor is {self.floor:g}, and {len(names)} domains with that much leave nothing to "
                f"decide; write less than {1 / len(names):.3g}, or use fewer domains"
            )

    def shares(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Returns the floored softmax of the scores."""
        if results.steps < self.warmup:
            return results.natural
        return floored(softmax(self.scores(results) / self.temperature), self.floor)

    @abstractmethod
    def scores(self, results: DomainResults) -> Float[np.ndarray, " D"]:
        """Scores the domains; those with a higher score are served more."""


def floored(shares: Float[np.ndarray, " D"], floor: float) -> Float[np.ndarray, " D"]:
    """Raises proportions to a floor, then divides all by their sum."""
    raised = np.maximum(shares, floor)
    return raised / raised.sum()


def means(results: Float[np.ndarray, "D W"]) -> Float[np.ndarray, " D"]:
    """Means of each domain's results; for a domain without any, the mean of the others' means, or 0."""
    known = ~np.isnan(results)
    seen = known.any(1)
    found = np.where(known, results, 0).sum(1) / np.maximum(known.sum(1), 1)
    return np.where(seen, found, found[seen].mean() if seen.any() else 0.0)


def largest_remainder(quotas: Float[np.ndarray, " D"], places: int) -> Int[np.ndarray, " D"]:
    """Rounds quotas down, and gives the places that are left to the largest remainders; the first of equal ones wins.

    Args:
        quotas: Number of places that each domain should get; not negative, with sum `places`.
        places: Number of places.
    """
    dealt = np.floor(quotas + 1e-9).astype(np.int64)  # a sum of shares may miss a whole number by its last bit
    best = np.argsort(-np.round(quotas - dealt, 9), kind="stable")
    dealt[best[: places - dealt.sum()]] += 1
    return dealt


def dealt_places(
    shares: Float[np.ndarray, " D"], owed: Float[np.ndarray, " D"], left: Int[np.ndarray, " D"], places: int
) -> Int[np.ndarray, " D"]:
    """Deals a batch's places to domains by largest remainder; a domain that is used up gives its places to the others.

    Args:
        shares: Proportion that each domain should get.
        owed: Number of places that rounding has taken from each domain so far; negative where it was given more.
        left: Number of prompts that each domain has left, in sum at least `places`.
        places: Number of places of the batch.
    """
    dealt, wanted = np.zeros(len(shares), dtype=np.int64), np.maximum(shares * places + owed, 0)
    while (unfilled := places - int(dealt.sum())) > 0:
        free = dealt < left
        weights = np.where(free, wanted, 0.0)
        if not weights.sum():  # nothing is left of the domains that are asked for
            weights = np.where(free, left - dealt, 0).astype(np.float64)
        more = largest_remainder(weights / weights.sum() * unfilled, unfilled)
        dealt += np.minimum(more, left - dealt)
        wanted = shares
    return dealt
