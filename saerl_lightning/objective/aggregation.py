"""How per-token terms become one number. Each divides by the size of the whole step, so micro-batches add up to it."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "R T"]
Mask = Bool[Tensor, "R T"]


def row_mean(values: Tokens, mask: Mask, step_rows: float) -> Float[Tensor, ""]:
    """Mean over each row's completion tokens, then over the step's rows (GRPO): every completion weighs the same."""
    per_row = (values * mask).sum(1) / mask.sum(1).clamp(min=1)  # (R,)
    return per_row.sum() / step_rows


def token_mean(values: Tokens, mask: Mask, step_tokens: float) -> Float[Tensor, ""]:
    """Mean over all completion tokens of the step (DAPO, arXiv 2503.14476): every token weighs the same."""
    return (values * mask).sum() / step_tokens


def constant_length(values: Tokens, mask: Mask, step_rows: float, max_tokens: int) -> Float[Tensor, ""]:
    """Sum over completion tokens by rows times the longest length there can be (Dr. GRPO, arXiv 2503.20783).

    A token weighs the same in every completion of every step, however long the step's completions are.
    """
    return (values * mask).sum() / (step_rows * max_tokens)
