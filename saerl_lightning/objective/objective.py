"""The seam of objectives: an algorithm is how rewards become advantages and how log-probabilities become a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """What a loss may look at: a micro-batch of rows, and the size of the whole optimiser step it belongs to.

    A step has tokens that are not scored, where rows without advantage are skipped: losses are divided by `step_tokens`
    or `step_rows`, which count them, metrics by `scored_tokens`, which does not.
    """

    logprobs: Float[Tensor, "R T"]  # under the policy, with gradient
    old_logprobs: Float[Tensor, "R T"]  # under the policy before this batch's first update
    sampler_logprobs: Float[Tensor, "R T"]  # under the engine that wrote the rows
    entropy: Float[Tensor, "R T"]  # of the distribution each token was drawn from, nats; see `entropy_gradient`
    mask: Bool[Tensor, "R T"]  # completion tokens
    advantages: Float[Tensor, " R"]
    reference: Float[Tensor, "R T"] | None  # under the frozen reference policy
    step_rows: float  # rows of the whole step: all micro-batches, all ranks
    step_tokens: float  # completion tokens of the whole step
    scored_tokens: float  # those of them that go through the policy
    max_tokens: int  # longest completion that sampling allows
    entropy_floor: float  # tokens of lower entropy get no policy gradient; see `top_entropy`


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

    @property
    def reads_sampler(self) -> bool:
        """Whether `penalty` or the loss reads the sampler's log-probabilities, which then must be the policy's own."""
        return self.corrects_sampler

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a row with advantage 0 has no gradient, so that it need not go through the policy."""
        return False

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss wants `entropy` with its gradient."""
        return False

    @property
    def top_entropy(self) -> float:
        """Share of the step's completion tokens, those of highest entropy, that get a policy gradient.

        Below 1 the step is scored once more, before the first update, to find `entropy_floor`.
        """
        return 1.0

    @property
    def masks_truncated(self) -> bool:
        """Whether completions that `max_tokens` cut off are left out of the loss, and of every baseline."""
        return False

    def penalty(
        self, sampler_logprobs: Float[Tensor, "R T"], reference: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
    ) -> Float[Tensor, " R"] | None:
        """What is taken off each row's reward before advantages; None takes nothing. Asked only with a reference."""
        return None

    @abstractmethod
    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Turns the rewards of all ranks' groups into advantages; a NaN reward gets 0 and has no say.

        A completion that is not trained on has one: its grader failed, or it was cut off and `masks_truncated`.
        """

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Computes the loss to descend, a scalar with gradient, and metrics, scalars without."""
