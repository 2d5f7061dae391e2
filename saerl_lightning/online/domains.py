"""Domains: what a pool is divided into for a mix: labels, the plan's clusters, and random groups of equal sizes.

N prompts in the pool, D domains.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from saerl_lightning.data.ordering import permute_within
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Seed, require_in_range
from saerl_lightning.records import Prompt

OTHERS = "without"  # domain of prompts without the label


@dataclass(frozen=True)
class Division:
    """The domain of every prompt."""

    names: tuple[str, ...]  # D, as metrics name them
    domain: Int[np.ndarray, " N"]  # position among the names; -1 for prompts that are not planned


class Domains(ABC):
    """Divides the planned prompts into domains. The constructor only stores its arguments."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that can't be divided so, before features are computed. By default refuses nothing.

        Args:
            prompts: Prompts of the pool, followed by the reference prompts.

        Raises:
            InputError: with what is missing, and what to write instead.
        """

    @abstractmethod
    def divide(self, plan: SamplePlan, prompts: Sequence[Prompt]) -> Division:
        """Returns the domain of every planned prompt. Deterministic.

        Args:
            plan: Plan as it is before training.
            prompts: Prompts of the pool (N), perhaps followed by reference prompts.
        """


class ClusterDomains(Domains):
    """The clusters of `data.clustering`: of SAE features, hidden states, TF-IDF or topics, by `data.signals`."""

    def divide(self, plan: SamplePlan, prompts: Sequence[Prompt]) -> Division:
        """Returns the plan's clusters by their numbers.

        Raises:
            InputError: if the plan has no clusters.
        """
        if (plan.cluster[plan.rows] < 0).all():
            raise InputError(
                "ClusterDomains needs clusters, and data.clustering is null; write --data.clustering KMeansClusters, or "
                "divide by a label: --data.online.domains LabelDomains"
            )
        return divided([str(number) for number in plan.cluster.tolist()], plan)


class LabelDomains(Domains):
    """One domain for each value of a label. Prompts without it form the domain `without`.

    Args:
        label: Name of what divides the prompts: topic, source, a label, or a column of the file of prompts.

    Raises:
        InputError: if the name is no text.
    """

    def __init__(self, label: str = "topic") -> None:
        self.label = label
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that all lack the label."""
        if all(self._value(prompt) is None for prompt in prompts):
            raise InputError(
                f"LabelDomains.label is {self.label!r}, and no prompt has it; write topic, source, a label, or a column of "
                "your file of prompts"
            )

    def divide(self, plan: SamplePlan, prompts: Sequence[Prompt]) -> Division:
        """Returns the values in the order of the alphabet."""
        values = [self._value(prompt) for prompt in prompts[: len(plan.cluster)]]
        return divided([OTHERS if value is None else value for value in values], plan)

    def _value(self, prompt: Prompt) -> str | None:
        known = {"topic": prompt.topic, "source": prompt.source or None}
        value = known.get(self.label, prompt.labels.get(self.label, prompt.columns.get(self.label)))
        return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


class RandomDomains(Domains):
    """Random domains with the sizes of others: what remains of an effect is not due to what the domains have in common.

    Args:
        inner: Domains whose names and sizes are kept.
        seed: Seed of the random assignment.

    Raises:
        InputError: if the seed is out of range.
    """

    def __init__(self, inner: Domains, seed: Seed = 0) -> None:
        self.inner = inner
        self.seed = seed
        require_in_range(self)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses what the inner domains refuse."""
        self.inner.check(prompts)

    def divide(self, plan: SamplePlan, prompts: Sequence[Prompt]) -> Division:
        """Permutes the inner domains among the planned prompts."""
        made = self.inner.divide(plan, prompts)
        return Division(made.names, permute_within(made.domain, np.zeros_like(made.domain), plan.rows, self.seed))


def divided(values: Sequence[str], plan: SamplePlan) -> Division:
    """Makes one domain of each value that planned prompts have: in the order of numbers, then of the alphabet.

    Args:
        values: Value of every prompt (N).
        plan: Plan, which says what is planned.
    """
    planned: list[int] = plan.rows.tolist()
    found = {values[row] for row in planned}
    ordered = sorted(found, key=lambda value: (not value.isdecimal(), int(value) if value.isdecimal() else 0, value))
    number = {value: position for position, value in enumerate(ordered)}
    domain = np.full(len(values), -1, dtype=np.int64)
    domain[plan.rows] = [number[values[row]] for row in planned]
    return Division(metric_names(ordered), domain)


def metric_names(values: Sequence[str]) -> tuple[str, ...]:
    """Makes different names of values that can be part of a metric's name."""
    names: list[str] = []
    for value in values:
        plain = name = re.sub(r"[^\w.-]+", "_", value)[:60] or "_"
        count = 1
        while name in names:
            count += 1
            name = f"{plain}_{count}"
        names.append(name)
    return tuple(names)
