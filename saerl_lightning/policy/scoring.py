"""How a step's log-probabilities are computed: with the prompt shared or repeated, with the head in tiles or whole.

All ways give the same values and gradients; which of them a model takes is found out once, before training. R rows of
T tokens, N completion tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.policy.head import TiledHead
from saerl_lightning.policy.logprobs import (
    chunked_logprobs,
    completion_positions,
    head_logits,
    output_head,
    predicting_states,
    score,
    spread,
    transforms_logits,
)
from saerl_lightning.policy.prefix import pack_groups, why_not_packed
from saerl_lightning.policy.prefix import predicting_states as packed_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """Scores completion tokens under a policy.

    Args:
        temperature: softmax temperature the rows were sampled at.
        shared_prefix: compute the prompt of neighbouring rows once.
        tiled_head: never hold the logits of all tokens.
        entropy_gradient: whether entropies carry a gradient.
    """

    temperature: float = 1.0
    shared_prefix: bool = False
    tiled_head: bool = False
    entropy_gradient: bool = False

    def suited(self, model: PreTrainedModel, max_tokens: int) -> Scorer:
        """This scorer without what the model can't take, with the reasons in the log.

        Args:
            model: the policy.
            max_tokens: longest row, in tokens.
        """
        shared, tiled = self.shared_prefix, self.tiled_head
        if shared and (reason := _why_not_shared(model, max_tokens)):
            log.warning("every completion computes its prompt again: %s", reason)
            shared = False
        if tiled and (reason := why_not_tiled(model)):
            log.warning("the logits of up to 1,024 tokens are held at a time: %s", reason)
            tiled = False
        return Scorer(self.temperature, shared, tiled, self.entropy_gradient)

    def __call__(
        self, model: PreTrainedModel, tokens: Int[Tensor, "R T"], mask: Bool[Tensor, "R T"], prompts: Int[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Log-probabilities (with gradient) and entropies of the completion tokens, float32, zero elsewhere.

        Args:
            model: the policy.
            tokens: rows of [prompt | completion | padding].
            mask: completion tokens; at least one a row.
            prompts: which prompt each row belongs to; rows of one prompt are neighbours.
        """
        if not (self.shared_prefix or self.tiled_head):
            return score(model, tokens, mask, self.temperature, self.entropy_gradient)
        positions = completion_positions(mask)  # (N,)
        if self.shared_prefix:
            hidden = packed_states(model, pack_groups(tokens, mask, prompts))  # (N, d)
        else:
            hidden = predicting_states(model, tokens, positions)
        logprobs, entropy = self._head(model, hidden, tokens.flatten()[positions])
        return spread(logprobs, positions, tokens.shape), spread(entropy, positions, tokens.shape)

    def _head(
        self, model: PreTrainedModel, hidden: Float[Tensor, "N d"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        if self.tiled_head:
            weight = output_head(model).weight
            assert isinstance(weight, Tensor)
            temperature = self.temperature or 1.0  # greedy rows are scored at 1
            return TiledHead.apply(hidden, weight, targets, temperature, self.entropy_gradient)  # pyright: ignore[reportReturnType]
        return chunked_logprobs(head_logits(model, hidden), targets, self.temperature, self.entropy_gradient)


def why_not_tiled(model: PreTrainedModel) -> str | None:
    """Why logits are not simply hidden states times the head's weight; None if they are."""
    head = output_head(model)
    if transforms_logits(model):
        return f"{type(model).__name__} transforms its logits"
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"the output head is no plain linear layer but {head}"
    return None


def _why_not_shared(model: PreTrainedModel, max_tokens: int) -> str | None:
    return "its logits are transformed" if transforms_logits(model) else why_not_packed(model, max_tokens)
