"""Interventions on a model's residual stream: adding a direction, or removing SAE features.

They are torch hooks on a loaded model. Inside the context, generation must use the model's own forward: hooks do not
run in a fused copy of the weights. d is the width of the stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.signals.model import replaced_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Intervention(ABC):
    """A function of stream vectors that changes each vector independently of the others."""

    @abstractmethod
    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Changes n positions at once and returns new vectors; the argument stays as it is."""


@final
@dataclass(frozen=True, eq=False)
class AddDirection(Intervention):
    """Adds the same vector at every position.

    Args:
        direction: Vector that is added, (d,).
        strength: Factor of the vector; for a vector of norm 1, the added length in the stream's unit.
    """

    direction: Float[Tensor, " d"]
    strength: float

    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Returns h + strength * v."""
        return stream + (self.strength * self.direction).to(stream)


@final
@dataclass(frozen=True, eq=False)
class AblateFeatures(Intervention):
    """Subtracts the contribution of some features to the SAE's reconstruction; the SAE's error stays in the stream.

    Args:
        sae: SAE of the layer, a `sae_lens.SAE`.
        columns: Indices of the j features, (j,).
    """

    sae: Any
    columns: Int[np.ndarray, " j"]

    @torch.no_grad()
    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Returns h - (decode(f) - decode(f without the columns)), with f = encode(h)."""
        codes = self.sae.encode(stream.to(self.sae.W_dec))
        some = torch.zeros_like(codes)
        some[:, self.columns] = codes[:, self.columns]
        # Decoding is affine, so the features' share is decode(some) - decode(nothing). Both are decoded in one call,
        # because an SAE that normalises stores the scale of its last input for a single decoding.
        share, nothing = self.sae.decode(torch.stack([some, torch.zeros_like(codes)]))
        return stream - (share - nothing).to(stream)


@dataclass
class ChangedPositions:
    """Counts the positions that an intervention has changed."""

    positions: int = 0


@contextmanager
def intervened(model: PreTrainedModel, layer: int, intervention: Intervention) -> Iterator[ChangedPositions]:
    """Changes the residual stream after a layer inside the context, for prompt and decoded tokens.

    Position 0 of every row stays unchanged: it is an attention sink, whose vector does not represent the token.
    Positions are the `position_ids` of the forward pass, so padding, which `PolicyDecoder` puts at position 0, stays
    unchanged too.

    Args:
        model: Full model, whose layers must be given `position_ids`, as in Llama and Qwen.
        layer: Index of the layer, from 0.
        intervention: Change of the vectors at all other positions.

    Yields:
        A counter of changed positions; if it is 0 at the end, the model's forward did not run.

    Raises:
        InputError: if the model has no such layer; in a forward pass also if its layers get no `position_ids`.
    """
    reach = ChangedPositions()

    def change(stream: Float[Tensor, "B t d"], given: Mapping[str, Any]) -> Float[Tensor, "B t d"]:
        where = _positions(stream, given) > 0
        reach.positions += int(where.sum())
        changed = stream.clone()
        changed[where] = intervention(stream[where])
        return changed

    with replaced_output(model, layer, change):
        yield reach


@torch.no_grad()
def read_streams(model: PreTrainedModel, layer: int, rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "t d"]]:
    """Reads the residual stream after a layer, one row at a time, without position 0.

    Args:
        model: Full model in evaluation mode.
        layer: Index of the layer, from 0.
        rows: Token ids of each row, at least two.

    Returns:
        For each row, the vectors of all its tokens except the first.

    Raises:
        InputError: if the model has no such layer, or its layers get no `position_ids`.
    """
    seen: list[Tensor] = []

    def note(stream: Float[Tensor, "B t d"], _given: Mapping[str, Any]) -> Float[Tensor, "B t d"]:
        seen.append(stream[0, 1:].float())
        return stream

    with replaced_output(model, layer, note):
        for row in rows:
            model(input_ids=torch.tensor([list(row)], device=model.device), use_cache=False, logits_to_keep=1)
    return seen


def mean_norm(streams: Sequence[Float[Tensor, "t d"]]) -> float:
    """Mean norm of the vectors of all tokens of all rows."""
    return float(torch.cat(list(streams)).norm(dim=1).mean())


def probe_direction(
    weights: Float[np.ndarray, " j"], decoder: Float[Tensor, "F d"], columns: Int[np.ndarray, " j"]
) -> Float[Tensor, " d"]:
    """Computes the direction of a probe's features in the stream: sum_j w_j dec_j, scaled to norm 1.

    A control uses the same weights with other columns.

    Args:
        weights: Weights of the probe, one for each column.
        decoder: Decoder matrix of the SAE, `W_dec`.
        columns: Rows of the decoder that are summed.

    Raises:
        InputError: if the numbers of weights and columns differ, or the sum is 0.
    """
    if len(weights) != len(columns):
        raise InputError(f"{len(weights)} weights for {len(columns)} columns; give one each")
    summed = torch.as_tensor(weights).to(decoder) @ decoder[torch.as_tensor(columns, device=decoder.device)]
    return _unit(summed.detach(), f"the sum of {len(columns)} weighted features")


def random_direction(width: int, seed: int) -> Float[Tensor, " d"]:
    """Draws a direction of norm 1 uniformly from the sphere.

    Args:
        width: Width of the stream, d.
        seed: Seed of the random draw.
    """
    drawn = np.random.default_rng(seed).standard_normal(width)
    return _unit(torch.from_numpy(drawn).float(), "a random direction")


def _unit(vector: Float[Tensor, " d"], what: str) -> Float[Tensor, " d"]:
    norm = float(vector.norm())
    if not norm > 0:
        raise InputError(f"{what} has norm {norm:g}, so it points nowhere; fit a probe that has weights other than 0")
    return vector / norm


def _positions(stream: Float[Tensor, "B t d"], given: Mapping[str, Any]) -> Int[Tensor, "B t"]:
    """Position of each vector in its row, from the layer's `position_ids`."""
    positions = given.get("position_ids")
    if positions is None:
        raise InputError("the model's layers are handed no position_ids; use a Llama-like model")
    return positions.expand(stream.shape[:2])
