"""Policies that may be trained as they are: float32 weights, and the same forward in training as in sampling.

bfloat16 keeps 8 bits of a weight. AdamW at a rate of 1e-6 changes a weight by about a millionth in a step, which is
rounded away: 1 % of the weights of a bfloat16 policy change, and 99.97 % of a float32 one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.errors import InputError
from saerl_lightning.hf_attention import TOLERANCE
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.modes import apart_in_training, switch_off_dropout
from saerl_lightning.policy.weights import with_whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Precisions with float32 weights, whatever the products are computed in.
TRAINABLE = ("32-true", "bf16-mixed", "16-mixed")


def require_float32_weights(precision: str) -> None:
    """Refuses a precision of the trainer in which weights are not float32.

    Args:
        precision: Precision as Lightning writes it, such as "bf16-mixed".

    Raises:
        InputError: with the precisions that are allowed.
    """
    if precision in TRAINABLE:
        return
    why = "moves weights by less than it can store" if "16" in precision else "is of no use to these models"
    raise InputError(
        f"trainer.precision is {precision}, which {why}; write bf16-mixed (float32 weights, bfloat16 arithmetic), 16-mixed "
        "or 32-true"
    )


def require_trainable(policy: Policy, precision: str) -> None:
    """Refuses to train weights that are not float32; frozen ones under adapters may be bfloat16.

    Args:
        policy: Policy that will be trained.
        precision: Precision of the trainer as Lightning writes it.

    Raises:
        InputError: with a dtype and precision that are allowed.
    """
    require_float32_weights(precision)
    if policy.dtype == "float32":
        return
    if policy.lora is None:
        raise InputError(
            f"policy.dtype is {policy.dtype}, and small steps on such weights round to nothing; write dtype: float32, and "
            "--trainer.precision bf16-mixed for arithmetic in bfloat16, or train adapters (policy.lora)"
        )
    if precision == "16-mixed":
        raise InputError(
            f"policy.dtype is {policy.dtype} and trainer.precision {precision}, two formats of 16 bits; write bf16-mixed"
        )


def refuse_adapter_dropout(policy: Policy) -> None:
    """Refuses adapters with dropout before anything is loaded.

    Raises:
        InputError: with the rate.
    """
    if policy.lora is not None and policy.lora.dropout > 0:
        raise InputError(
            f"policy.lora.dropout is {policy.lora.dropout}; GRPOModule scores the very policy that sampled, and samples are "
            "drawn without dropout: write 0 (SFTModule takes other rates)"
        )


def score_as_sampled(model: PreTrainedModel) -> None:
    """Switches off the dropout that a model folder configures, logs it, and checks that no randomness is left.

    Raises:
        InputError: if training mode still computes something else than evaluation mode.
    """
    if off := switch_off_dropout(model):
        rank_zero_info(
            f"the policy's own dropout is off, so that the policy that is scored is the one that sampled: {', '.join(off)}"
        )
    apart = with_whole_weights(model, apart_in_training, model)
    if not apart <= TOLERANCE[model.get_decoder().dtype]:
        raise InputError(
            f"{type(model).__name__} computes something else in training mode than when it samples (hidden states differ by "
            f"{apart:.2g} of their norm); choose a model whose forward draws no random numbers"
        )
