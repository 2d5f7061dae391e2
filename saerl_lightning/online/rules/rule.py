"""Rule: the interface of decisions which prompts are served next. n prompts are left to serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Candidates:
    """The prompts that can be served next, in the order of the plan, and what is believed of them."""

    rows: Int[np.ndarray, " n"]  # pool rows
    a: Float[np.ndarray, " n"]  # pass rate ~ Beta(a, b)
    b: Float[np.ndarray, " n"]
    varies: Float[np.ndarray, " n"]  # predicted chance that a group is neither all right nor all wrong
    seen: Int[np.ndarray, " n"]  # number of graded groups so far in the run
    cluster: Int[np.ndarray, " n"]  # -1 without clustering
    batch_size: int  # number of prompts that are served next (P)

    @property
    def pass_rate(self) -> Float[np.ndarray, " n"]:
        """Mean of the believed pass rate."""
        return self.a / (self.a + self.b)


@dataclass(frozen=True)
class Arrangement:
    """The order in which candidates are served, and which of them wait or are excluded."""

    order: Int[np.ndarray, " n"]  # positions among the candidates, the next to serve first
    waits: Bool[np.ndarray, " n"] | None = None  # candidates behind all others; None for none
    excluded: Bool[np.ndarray, " n"] | None = None  # candidates that are served no more in this run; None for none
    reason: str = ""  # why some wait or are excluded, such as "chance to vary below 0.3"


class Rule(ABC):
    """Decides which prompts are served next. The constructor only stores its arguments."""

    def check(self, group_size: int) -> None:
        """Refuses settings that no prompt can meet, before training. By default refuses nothing.

        Args:
            group_size: Number of completions a prompt (G).

        Raises:
            InputError: with what is wrong, and what to write instead.
        """

    @abstractmethod
    def arrange(self, left: Candidates, random: np.random.Generator) -> Arrangement:
        """Arranges the prompts that are left.

        Ties keep the order of the plan.

        Args:
            left: Prompts that are left, in the order of the plan.
            random: Generator for draws, the same on every process and after a resume.
        """


def best_first(scores: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
    """Returns positions: the `count` highest scores in falling order, then the others in the order of the plan.

    Args:
        scores: Scores of the candidates, the highest is served first.
        count: Number of prompts that are served next.
    """
    best = np.argsort(-scores, kind="stable")[:count]
    others = np.ones(len(scores), dtype=bool)
    others[best] = False
    return np.concatenate([best, np.flatnonzero(others)])


def drawn_first(logits: Float[np.ndarray, " n"], count: int, random: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Draws `count` positions one after the other without replacement; the others follow in the order of the plan.

    Each draw takes a position that is left with chance proportional to exp(logit). It is done for all at once by adding
    Gumbel noise and taking the highest sums (Source: Kool et al., arXiv 1903.06059).

    Args:
        logits: Logarithms of the chances, up to a constant; minus infinity for never.
        count: Number of prompts that are served next.
        random: Generator for the noise.
    """
    return best_first(logits + random.gumbel(size=len(logits)), count)


def waiting_last(waits: Bool[np.ndarray, " n"], reason: str) -> Arrangement:
    """Keeps the order of the plan, but for the prompts that wait: they come behind all others.

    Args:
        waits: Which candidates wait.
        reason: Why they wait.
    """
    return Arrangement(np.argsort(waits, kind="stable"), waits, reason=reason)
