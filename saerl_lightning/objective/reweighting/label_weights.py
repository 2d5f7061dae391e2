"""LabelWeights: completions weighted by a label of their prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.reweighting.reweighting import RowReweighting
from saerl_lightning.ranges import Power, require_in_range
from saerl_lightning.records import Prompt


class LabelWeights(RowReweighting):
    """Weighs completions in proportion to a power of a label of their prompt, such as its difficulty. (Ours.)

    A prompt without the label gets the mean weight of the step's others.

    Args:
        label: Name of the label, from the data or the file of labels; not negative.
        power: Power of the label; 1 weighs in proportion to it, 0 all completions alike.

    Raises:
        InputError: if the power is out of range.
    """

    def __init__(self, label: str = "difficulty", power: Power = 1.0) -> None:
        self.label = label
        self.power = power
        require_in_range(self)

    @property
    def reads(self) -> str | None:
        """The label."""
        return self.label

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses a label that no prompt has, or that is negative."""
        found = [(prompt.uid, prompt.labels[self.label]) for prompt in prompts if self.label in prompt.labels]
        if not found:
            present = ", ".join(sorted({name for prompt in prompts for name in prompt.labels})) or "none"
            raise InputError(
                f"LabelWeights.label is {self.label!r}, but no prompt has it; labels present: {present}. Name one of them, "
                "or write a file of labels to data.labels"
            )
        uid, lowest = min(found, key=lambda each: each[1])
        if lowest < 0:
            raise InputError(f"LabelWeights.label is {self.label!r}, and that of '{uid}' is {lowest:g}; give 0 or more")

    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Computes the powers; the mean of the others where there is no label."""
        return powers(labels, self.power)


def powers(values: Float[Tensor, " n"], power: float) -> Float[Tensor, " n"]:
    """Computes powers of values, which are not negative; the mean of the others for NaN, and 1 if all are NaN."""
    found = values**power
    mean = found.nanmean() if found.isfinite().any() else torch.ones(())
    return torch.where(values.isnan(), mean.to(found), found)
