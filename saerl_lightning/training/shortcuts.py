"""Ways to do less for the same update."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcuts:
    """What a step leaves out because the gradient is the same without. All off is the plain, padded computation.

    Args:
        shared_prefix: compute a prompt once, with gradient, for all completions of its group; a model whose attention
            can't be replaced falls back to padded rows and says why.
        lean_layers: keep less of norms and gated MLPs for the backward pass (Llama, Qwen2, Qwen3; others stay as they are).
        tiled_head: form log-probabilities in tiles, and never hold the logits of all tokens.
        skip_zero_advantage: leave rows without advantage out of forward and backward where the objective allows it.
        reuse_forward: take the first update's log-probabilities for the old ones, in place of a forward of their own.
        sort_by_length: put rows of similar length into a micro-batch.
        overlap_grading: grade the first completions while later prompts are still being completed.
    """

    shared_prefix: bool = True
    lean_layers: bool = True
    tiled_head: bool = True
    skip_zero_advantage: bool = True
    reuse_forward: bool = True
    sort_by_length: bool = True
    overlap_grading: bool = True
