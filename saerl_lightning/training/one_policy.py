"""The policy that is scored is the one that sampled: no dropout in the training forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.attention import TOLERANCE
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.modes import apart_in_training, switch_off_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_adapter_dropout(policy: Policy) -> None:
    """Refuses adapters with dropout, before anything is loaded.

    Raises:
        InputError: with the rate.
    """
    if policy.lora is not None and policy.lora.dropout > 0:
        raise InputError(
            f"policy.lora.dropout is {policy.lora.dropout}; GRPOModule scores the very policy that sampled, and samples are "
            "drawn without dropout: write 0 (SFTModule takes other rates)"
        )


def score_as_sampled(model: PreTrainedModel) -> None:
    """Switches off the dropout that a model folder configures, says so, and makes sure that no other chance is left.

    Raises:
        InputError: if the model still computes something else in training mode than in evaluation mode.
    """
    if off := switch_off_dropout(model):
        rank_zero_info(
            f"the policy's own dropout is off, so that the policy that is scored is the one that sampled: {', '.join(off)}"
        )
    apart = apart_in_training(model)
    if not apart <= TOLERANCE[model.get_decoder().dtype]:
        raise InputError(
            f"{type(model).__name__} computes something else in training mode than when it samples (hidden states differ by "
            f"{apart:.2g} of their norm); choose a model whose forward draws no random numbers"
        )
