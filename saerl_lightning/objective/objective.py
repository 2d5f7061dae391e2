"""Objective: the interface of policy-gradient algorithms: rewards to advantages, log-probabilities to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

Weighed = Literal["nothing", "rows", "tokens"]


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss: a micro-batch of rows, and the size of the optimiser step that it belongs to.

    Rows without advantage may be skipped, and their tokens are not scored. Losses are divided by `step_tokens` or
    `step_rows`, which count these rows; metrics are divided by `scored_tokens`, which does not.
    """

    logprobs: Float[Tensor, "R T"]  # under the policy, with gradient
    old_logprobs: Float[Tensor, "R T"]  # under the policy before this batch's first update
    sampler_logprobs: Float[Tensor, "R T"]  # under the engine that wrote the rows
    entropy: Float[Tensor, "R T"]  # of the distribution each token was drawn from, nats; see `entropy_gradient`
    mask: Bool[Tensor, "R T"]  # completion tokens that the policy wrote; a row's need not be neighbours
    advantages: Float[Tensor, " R"]
    reference: Float[Tensor, "R T"] | None  # under the frozen reference policy
    step_rows: float  # rows of the whole step: all micro-batches, all ranks
    step_tokens: float  # those tokens of the whole step
    scored_tokens: float  # those of them that go through the policy
    max_tokens: int  # longest completion that sampling allows
    entropy_floor: float  # tokens of lower entropy get no policy gradient; see `top_entropy`
    weights: Float[Tensor, "R T"] | None = None  # factors of the gain, with mean 1 over the step; see `weighs`


class Objective(ABC):
    """A policy-gradient algorithm: pure functions over rewards and log-probabilities.

    Losses and metrics are sums divided by the size of the *step*. Those of its micro-batches therefore add up to those
    of the step, whatever the split. Metrics whose name ends in `/min` or `/max` are combined by minimum or maximum.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under a frozen reference policy must be computed."""
        return False

    @property
    def corrects_sampler(self) -> bool:
        """Whether the loss weighs rows by policy over sampler probability, which needs the sampler's full support."""
        return False

    @property
    def compares_old(self) -> bool:
        """Whether the loss takes the policy's ratio to `old_logprobs`, so that rows of earlier weights can be trained on."""
        return False

    @property
    def reads_sampler(self) -> bool:
        """Whether the sampler's log-probabilities are used, which then must be the policy's own."""
        return self.corrects_sampler

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether rows with advantage 0 have no gradient, so that they can skip the policy."""
        return False

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss needs `entropy` with its gradient."""
        return False

    @property
    def top_entropy(self) -> float:
        """Share of the step's completion tokens, those of highest entropy, that get a policy gradient.

        Below 1, the step is scored once more before the first update, to find `entropy_floor`.
        """
        return 1.0

    @property
    def masks_truncated(self) -> bool:
        """Whether completions that `max_tokens` cut off are left out of the loss and of every baseline."""
        return False

    @property
    def weighs(self) -> Weighed:
        """Whether the loss multiplies its gain by `LossInputs.weights`, and if those may differ between tokens of a row."""
        return "nothing"

    def penalty(
        self, sampler_logprobs: Float[Tensor, "R T"], reference: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
    ) -> Float[Tensor, " R"] | None:
        """Amount subtracted from each row's reward before advantages, or None. Called only with a reference."""
        return None

    @abstractmethod
    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Turns the rewards of all ranks' groups into advantages; a NaN reward is ignored and gets 0.

        The reward is NaN for a completion that is not trained on: its grader failed, or it was cut off with
        `masks_truncated`.
        """

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Computes the loss to minimise, a scalar with gradient, and metrics, scalars without."""
