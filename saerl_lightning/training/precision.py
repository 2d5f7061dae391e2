"""Precisions in which a policy or an SAE may be trained: weights that an optimiser changes must be float32.

bfloat16 keeps 8 bits of a weight. AdamW at a rate of 1e-6 changes a weight by about a millionth in a step, which is
rounded away: 1 % of the weights of a bfloat16 policy change, and 99.97 % of a float32 one.
"""

from __future__ import annotations

from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy

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
