"""Reweighting: the interface of weights of a step's rows or tokens, which have mean 1 over the whole step.

They are computed once a step, over all ranks and before it is split, so that the gradient does not depend on the split.
R rows of this rank, T tokens of the longest row, n rows in the loss on all ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.objective.objective import Weighed
from saerl_lightning.records import Prompt

# Joins the values of all ranks, and says where this rank's are.
Everywhere = Callable[[Tensor], tuple[Tensor, slice]]


@dataclass(frozen=True)
class WeighedRows:
    """What weights are computed from: the rows of a step that this rank has."""

    advantages: Float[Tensor, " R"]
    mask: Bool[Tensor, "R T"]  # tokens in the loss
    probabilities: Float[Tensor, "R T"]  # of the tokens, before the step's first update
    labels: Float[Tensor, " R"]  # or predictions of the rows' prompts, by the name that is read; NaN without


class Reweighting(ABC):
    """Gives rows or tokens of a step weights of mean 1, which multiply the gain in the objective.

    A KL penalty and an entropy bonus are not weighted, nor are losses divided by other counts.
    """

    @property
    @abstractmethod
    def level(self) -> Literal["rows", "tokens"]:
        """What is weighted: whole completions, or single tokens."""

    @property
    def reads(self) -> str | None:
        """Name of the label, or of the prediction, that weights are computed from; None for none."""
        return None

    @property
    def predicted(self) -> bool:
        """Whether `reads` names what `data.online` predicts of a prompt before the step, in place of a label."""
        return False

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses training prompts that can't be weighted so. By default refuses nothing.

        Raises:
            InputError: with what is missing, and what to write instead.
        """

    def require(self, weighs: Weighed, objective: str) -> None:
        """Refuses an objective whose loss does not read these weights.

        Args:
            weighs: What the objective weighs.
            objective: Name of the objective.

        Raises:
            InputError: with what to write instead.
        """
        if weighs == "nothing" or (weighs == "rows" and self.level == "tokens"):
            instead = "null" if weighs == "nothing" else "one that weighs rows, such as PER"
            raise InputError(
                f"model.reweighting {type(self).__name__} weighs {self.level}, and the loss of {objective} weighs {weighs}; "
                f"write {instead}, or an objective of token ratios, such as GRPO or DAPO"
            )

    @abstractmethod
    def weights(self, rows: WeighedRows, everywhere: Everywhere) -> Float[Tensor, "R T"]:
        """Computes the weight of each of this rank's tokens; their mean over the step's rows or tokens is 1.

        Args:
            rows: Rows of this rank.
            everywhere: Function that joins the values of all ranks. All ranks must call it equally often.
        """


class RowReweighting(Reweighting):
    """Weighs whole completions, by their advantages, or by a label or a prediction of their prompts."""

    @property
    def level(self) -> Literal["rows", "tokens"]:
        """Rows."""
        return "rows"

    @abstractmethod
    def raw(self, sizes: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Computes weights, not negative, of all rows in the loss, which are then divided by their mean.

        Args:
            sizes: Absolute advantage of each row, over all ranks.
            labels: Label of each row's prompt, or what was predicted of it; NaN without one.
        """

    def weights(self, rows: WeighedRows, everywhere: Everywhere) -> Float[Tensor, "R T"]:
        """Computes a weight a row, equal at all of its tokens; 1 for rows that are not in the loss."""
        trained = rows.mask.any(1)
        own = torch.stack([rows.advantages.abs(), rows.labels], 1)[trained].double().cpu()  # (own n, 2)
        joined, place = everywhere(own)
        made = mean_one(self.raw(*joined.unbind(1)))[place]
        weights = torch.ones_like(rows.advantages)
        weights[trained] = made.to(weights)
        return weights[:, None].expand(rows.mask.shape)


class TokenReweighting(Reweighting):
    """Weighs single tokens by their probabilities before the step's first update."""

    @property
    def level(self) -> Literal["rows", "tokens"]:
        """Tokens."""
        return "tokens"

    @abstractmethod
    def raw(self, probabilities: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
        """Computes the weight, not negative, of each token by itself; weights are then divided by their mean."""

    def weights(self, rows: WeighedRows, everywhere: Everywhere) -> Float[Tensor, "R T"]:
        """Computes a weight a token."""
        made = self.raw(rows.probabilities) * rows.mask
        own = torch.stack([made.double().sum(), rows.mask.sum().double()]).cpu()[None]  # (1, 2)
        total, count = everywhere(own)[0].sum(0).tolist()
        return made * (count / total) if total > 0 else torch.ones_like(made)


def mean_one(raw: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Divides weights by their mean; all 1 if they are all 0."""
    total = raw.sum()
    return raw * (len(raw) / total) if total > 0 else torch.ones_like(raw)
