"""Scores a whole step without gradient: under the reference, or under the policy before its first update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.training.distributed import gather_objects
from saerl_lightning.training.step import Cut, StepRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score_step(
    scorer: Scorer, model: PreTrainedModel, step: StepRows, cut: Cut
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Log-probabilities and entropies of the step's scored rows, 0 elsewhere."""
    logprobs, entropy = torch.zeros_like(step.sampler_logprobs), torch.zeros_like(step.sampler_logprobs)
    for micro in step.micro_batches(cut):
        width = micro.tokens.shape[1]
        values = scorer(model, micro.tokens, micro.written, micro.prompts)
        logprobs[micro.rows, :width], entropy[micro.rows, :width] = (v.float() for v in values)
    return logprobs, entropy


def entropy_floor(entropy: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"], top: float, ranks: int) -> float:
    """The entropy above which the `top` share of all ranks' completion tokens lies; -inf where `top` is 1.

    Source: "Beyond the 80/20 rule", arXiv 2506.01939, which trains on the fifth of highest entropy.
    """
    if top >= 1:
        return -torch.inf
    everywhere = np.concatenate(gather_objects(entropy[mask].cpu().numpy(), ranks))
    return float(np.quantile(everywhere, 1 - top)) if len(everywhere) else -torch.inf
