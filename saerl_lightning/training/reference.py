"""The frozen reference policy that a KL term holds on to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.logprobs import score
from saerl_lightning.policy.weights import without_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from saerl_lightning.training.step import StepRows


class Reference:
    """The policy as it was before training: a second copy of its weights, or with LoRA the same weights without adapters.

    It is loaded from where the policy came from, also after a resume, and is in no checkpoint.
    """

    def __init__(self, policy: Policy, model: PreTrainedModel) -> None:
        self._model = model if policy.lora else policy.load_model()
        self._model.to(model.device)  # pyright: ignore[reportArgumentType]  # transformers types `self` wrongly

    @torch.no_grad()
    def logprobs(self, step: StepRows, micro_tokens: int, temperature: float) -> Float[Tensor, "R T"]:
        """Log-probabilities of the step's completion tokens under the reference, 0 elsewhere."""
        values = torch.zeros_like(step.sampler_logprobs)
        with without_adapters(self._model):
            for micro in step.micro_batches(micro_tokens):
                logprobs, _ = score(self._model, micro.tokens, micro.mask, temperature)
                values[micro.rows, : micro.tokens.shape[1]] = logprobs.float()
        return values
