"""Switches for computations that a step can skip without changing its gradient."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcuts:
    """Computations that a step skips because they do not change its gradient. All off: the plain, padded step.

    Args:
        shared_prefix: Whether a prompt is computed once, with gradient, for all completions of its group; a model whose
            attention can't be replaced uses padded rows, and the log gives the reason.
        lean_layers: Whether norms and gated MLPs store less for the backward pass (Llama, Qwen2, Qwen3; other models
            stay as they are).
        tiled_head: Whether log-probabilities are computed in tiles, so that the logits of all tokens are never in
            memory at once.
        skip_zero_advantage: Whether rows without advantage skip forward and backward, if the objective allows it.
        reuse_forward: Whether the first update's log-probabilities serve as the old ones, without a forward pass of
            their own.
        sort_by_length: Whether rows of similar length are put into the same micro-batch.
        overlap_grading: Whether the first completions are graded while later prompts are still being completed.
    """

    shared_prefix: bool = True
    lean_layers: bool = True
    tiled_head: bool = True
    skip_zero_advantage: bool = True
    reuse_forward: bool = True
    sort_by_length: bool = True
    overlap_grading: bool = True
