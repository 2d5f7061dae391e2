"""The seam of objectives: an algorithm is how rewards become advantages and how log-probabilities become a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """What a loss may look at: a micro-batch of rows, and the size of the whole optimiser step it belongs to."""

    logprobs: Float[Tensor, "R T"]  # under the policy, with gradient
    old_logprobs: Float[Tensor, "R T"]  # under the policy before this batch's first update
    sampler_logprobs: Float[Tensor, "R T"]  # under the engine that wrote the rows
    mask: Bool[Tensor, "R T"]  # completion tokens
    advantages: Float[Tensor, " R"]
    reference: Float[Tensor, "R T"] | None  # under the frozen reference policy
    step_rows: float  # rows of the whole step: all micro-batches, all ranks
    step_tokens: float  # completion tokens of the whole step


class Objective(ABC):
    """A policy-gradient algorithm: pure functions over rewards and log-probabilities.

    Losses and metrics are sums divided by the size of the *step*, so those of its micro-batches add up to those of the
    step, whatever the split. A metric whose name ends in `/min` or `/max` is combined by minimum or maximum instead.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under a frozen reference policy must be computed."""
        return False

    @property
    def corrects_sampler(self) -> bool:
        """Whether the loss weighs rows by policy over sampler probability, which needs the sampler's full support."""
        return False

    @abstractmethod
    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Turns the rewards of P groups into advantages; a NaN reward (failed grader) gets advantage 0 and no say."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Computes this micro-batch's share of the step's loss, and of its metrics."""
