"""The mismatch guard: stops a run whose sampler does not have the policy's weights.

A sampler with old or wrong weights causes no error: rewards change, the loss is finite, and the run collapses days
later. The comparison costs nothing, because the first update after a sync computes the policy's log-probabilities of
the sampled tokens anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.policy.logprobs import mismatch
from saerl_lightning.ranges import Positive, require_in_range
from saerl_lightning.ranks.collectives import gather_objects
from saerl_lightning.records import Sampling

# Measured with SmolLM2-135M on a CPU, mean nats a token: a right sync reads 5e-6 to 2e-5 in float32 and 0.03 to 0.05 where
# policy and sampler have bfloat16 weights; a head or a prefix cache that is one step of 1e-5 old reads 2e-4 to 3e-4, and
# falls further behind with every step. HFEngine under bf16-mixed reads 0.023 to 0.035, with adapters on a bfloat16 base
# 0.040 (83 tokens), vLLM's bfloat16 weights beside bf16-mixed 0.055. Not measured: 16-mixed, vLLM with adapters on a bfloat16
# base, vLLM's float32 weights beside bf16-mixed. At bfloat16's threshold a stale sync of one small step is not seen.
DEFAULT_THRESHOLD = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}

CAUSES = (
    "likely causes: the tied output head was not sent to the sampler (iterate state_dict(), not named_parameters()); the "
    "sampler's prefix cache was not reset after the sync; the sampler's log-probabilities are not at the sampling "
    "temperature (vLLM: logprobs_mode='processed_logprobs'); the sampler computes in another dtype than the policy "
    "(engine.dtype, policy.dtype, trainer.precision, float32_matmul_precision); it computes quantised weights, rotary "
    "embeddings that change with the text's length, or a model folder's own code otherwise; the model's forward draws random "
    "numbers in training"
)


@dataclass(frozen=True)
class Differences:
    """Absolute differences of log-probabilities in nats, as sums that can be added over ranks."""

    tokens: int
    total: float
    largest: float

    @classmethod
    def of(cls, policy: Float[Tensor, "R T"], sampler: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]) -> Self:
        """Differences of one rank's tokens."""
        tokens = int(mask.sum())
        if not tokens:
            return cls(0, 0.0, 0.0)
        mean, largest = mismatch(policy, sampler, mask)
        return cls(tokens, float(mean) * tokens, float(largest))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Joins the differences of all ranks; NaN stays NaN."""
        totals, extremes = np.array([(part.total, part.largest) for part in parts]).T
        return cls(sum(part.tokens for part in parts), float(totals.sum()), float(extremes.max()))

    @property
    def mean(self) -> float:
        """Mean difference in nats a token."""
        return self.total / self.tokens


@dataclass(frozen=True)
class MismatchGuard:
    """Compares the policy's log-probabilities of sampled tokens with the sampler's, after every weight sync.

    Args:
        threshold: Mean absolute difference in nats a token above which the run stops; null takes 0.0001 for a float32
            policy and 0.1 for bfloat16 and float16.
    """

    threshold: Positive | None = None

    def __post_init__(self) -> None:
        """Refuses a threshold that stops every run or none."""
        require_in_range(self)

    def check(
        self,
        policy: Float[Tensor, "R T"],
        sampler: Float[Tensor, "R T"],
        mask: Bool[Tensor, "R T"],
        dtype: torch.dtype,
        ranks: int = 1,
    ) -> dict[str, float]:
        """Measures the differences over the tokens of all ranks, for the logs; empty if no rank has any.

        Args:
            policy: Log-probabilities of this rank's sampled tokens under the policy.
            sampler: Log-probabilities of these tokens under the sampler.
            mask: True at the tokens to compare.
            dtype: Floating-point type that the policy computes in.
            ranks: Number of processes that train; all must call this, and all get the same result.

        Raises:
            RunStopped: on every rank, if the mean exceeds the threshold, with the likely causes.
        """
        found = Differences.join(gather_objects(Differences.of(policy, sampler, mask), ranks))
        if not found.tokens:
            return {}
        mean, largest = found.mean, found.largest
        limit = DEFAULT_THRESHOLD[dtype] if self.threshold is None else self.threshold
        # `not <=` also stops the run at NaN.
        if not mean <= limit:
            raise RunStopped(
                f"the sampler is not the policy: their log-probabilities of the same tokens differ by {mean:.2g} nats on "
                f"average (largest {largest:.2f}), and more than {limit} is no rounding; {CAUSES}. Raise "
                "model.guard.threshold only if you know why they differ.",
                everywhere=True,
            )
        return {"sampler/mismatch_mean": mean, "sampler/mismatch_max": largest}


def refuse_truncated_support(sampling: Sampling) -> None:
    """Refuses top_p and top_k if the sampler's log-probabilities are compared with the policy's.

    Raises:
        InputError: naming top_p and top_k.
    """
    if sampling.full_support:
        return
    raise InputError(
        f"sampling.top_p {sampling.top_p}, top_k {sampling.top_k}: the sampler's log-probabilities are then those of a "
        "truncated distribution, so importance correction and a KL in the reward would be biased by the kept mass and the "
        "guard would see a mismatch; write top_p 1.0 and top_k 0, or --model.guard null and an objective without correction "
        "and without kl.where reward, and no reweighting of tokens"
    )
