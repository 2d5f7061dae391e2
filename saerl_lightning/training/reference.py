"""The frozen reference policy that a KL term holds on to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.policy.weights import without_adapters
from saerl_lightning.training.scored import score_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from saerl_lightning.training.step import Cut, StepRows


class Reference:
    """The policy as it was before training: a second copy of its weights, or with LoRA the same weights without adapters.

    It is loaded from where the policy came from, also after a resume, and is in no checkpoint.
    """

    def __init__(self, policy: Policy, model: PreTrainedModel) -> None:
        self._model = model if policy.lora else policy.load_model()
        self._model.to(model.device)  # pyright: ignore[reportArgumentType]  # transformers types `self` wrongly

    def logprobs(self, scorer: Scorer, step: StepRows, cut: Cut) -> Float[Tensor, "R T"]:
        """Log-probabilities of the step's completion tokens under the reference, 0 elsewhere."""
        with without_adapters(self._model):
            return score_step(scorer, self._model, step, cut)[0]
