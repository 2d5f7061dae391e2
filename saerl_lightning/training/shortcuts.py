"""Shortcuts: computations that a step can skip without changing its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from saerl_lightning.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Shortcuts:
    """Computations that a step skips because they do not change its gradient. None: the plain, padded step.

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

    @classmethod
    def of(cls, chosen: Sequence[str] | str) -> Shortcuts:
        """Makes the shortcuts that a user chose.

        Args:
            chosen: `all`, `none`, or a list of names.

        Raises:
            InputError: for a name that no shortcut has.
        """
        names = [field.name for field in fields(cls)]
        if chosen == "all":
            return cls()
        # A null from a config arrives here as it is.
        alone = isinstance(chosen, str) or chosen is None
        given = [] if chosen == "none" else [chosen] if alone else chosen
        for name in given:
            if name not in names or alone:
                hint = (
                    f"; did you mean [{name}]?" if name in names else did_you_mean(str(name), ["all", "none", *names])
                )
                raise InputError(
                    f"model.shortcuts names {name!r:.80}; write all, none, or a list of {', '.join(names)}{hint}"
                )
        return cls(**{name: name in given for name in names})
