"""What a model's residual stream is changed by while it reads and writes: a direction added, or SAE features taken out.

Torch hooks on a whole, loaded model, and the vectors for them. No engine, no questions: who generates inside the context
must decode by the model's own forward, for a copy of its weights knows nothing of hooks. d is the width of the stream.
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
    """Makes new stream vectors of old ones, each from itself alone."""

    @abstractmethod
    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Changes n positions at once; the argument stays as it is."""


@final
@dataclass(frozen=True, eq=False)
class AddDirection(Intervention):
    """Adds the same vector everywhere.

    Args:
        direction: (d,).
        strength: length of what is added, for a direction of norm 1, in the stream's unit.
    """

    direction: Float[Tensor, " d"]
    strength: float

    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Gives h + strength v."""
        return stream + (self.strength * self.direction).to(stream)


@final
@dataclass(frozen=True, eq=False)
class AblateFeatures(Intervention):
    """Takes out what some features add to the SAE's reconstruction; the SAE's error stays in the stream.

    Args:
        sae: a `sae_lens.SAE` of the layer.
        columns: of the features, (j,).
    """

    sae: Any
    columns: Int[np.ndarray, " j"]

    @torch.no_grad()
    def __call__(self, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Gives h - (decode(f) - decode(f without the columns)), where f = encode(h)."""
        codes = self.sae.encode(stream.to(self.sae.W_dec))
        some = torch.zeros_like(codes)
        some[:, self.columns] = codes[:, self.columns]
        # Decoding is affine, so the features' share is decode(some) - decode(nothing). One call decodes both: an SAE that
        # normalises remembers the scale of its last input for one decoding.
        share, nothing = self.sae.decode(torch.stack([some, torch.zeros_like(codes)]))
        return stream - (share - nothing).to(stream)


@dataclass
class Reach:
    """How many positions an intervention has changed so far."""

    positions: int = 0


@contextmanager
def intervened(model: PreTrainedModel, layer: int, intervention: Intervention) -> Iterator[Reach]:
    """Changes the residual stream behind a layer for as long as the context lasts, prompt and decoded tokens alike.

    Position 0 of every row stays as it is, an attention sink whose vector is no token's. Positions are the `position_ids`
    that the model is given, so padding, which `PolicyDecoder` puts at position 0, stays as it is too.

    Args:
        model: whole; its layers must be handed `position_ids`, as Llama's and Qwen's are.
        layer: from 0.
        intervention: what is done to the vectors of all other positions at once.

    Yields:
        A count of changed positions: 0 in the end says that the model's forward did not run.

    Raises:
        InputError: if the model has no such layer; in a forward pass also if its layers get no `position_ids`.
    """
    reach = Reach()

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
    """Reads the residual stream behind a layer, a row at a time, without position 0.

    Args:
        model: whole, in evaluation mode.
        layer: from 0.
        rows: token ids, at least two a row.

    Returns:
        For each row the vectors of its t tokens but the first.

    Raises:
        InputError: as `intervened`.
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
    """Mean norm of the vectors of all rows' tokens."""
    return float(torch.cat(list(streams)).norm(dim=1).mean())


def probe_direction(
    weights: Float[np.ndarray, " j"], decoder: Float[Tensor, "F d"], columns: Int[np.ndarray, " j"]
) -> Float[Tensor, " d"]:
    """Gives the direction that a probe's features write to the stream: sum_j w_j dec_j, of norm 1.

    For a control, keep the weights and give other columns.

    Args:
        weights: of the probe, one a column.
        decoder: the SAE's `W_dec`.
        columns: rows of the decoder that are summed.

    Raises:
        InputError: if weights and columns differ in number, or the sum is 0.
    """
    if len(weights) != len(columns):
        raise InputError(f"{len(weights)} weights for {len(columns)} columns; give one each")
    summed = torch.as_tensor(weights).to(decoder) @ decoder[torch.as_tensor(columns, device=decoder.device)]
    return _unit(summed.detach(), f"the sum of {len(columns)} weighted features")


def random_direction(width: int, seed: int) -> Float[Tensor, " d"]:
    """Draws a direction of norm 1, every one as likely.

    Args:
        width: d.
        seed: of the draw.
    """
    drawn = np.random.default_rng(seed).standard_normal(width)
    return _unit(torch.from_numpy(drawn).float(), "a random direction")


def _unit(vector: Float[Tensor, " d"], what: str) -> Float[Tensor, " d"]:
    norm = float(vector.norm())
    if not norm > 0:
        raise InputError(f"{what} has norm {norm:g}, so it points nowhere; fit a probe that has weights other than 0")
    return vector / norm


def _positions(stream: Float[Tensor, "B t d"], given: Mapping[str, Any]) -> Int[Tensor, "B t"]:
    """Where each vector stands in its row, as the layer was told."""
    positions = given.get("position_ids")
    if positions is None:
        raise InputError("the model's layers are handed no position_ids; use a Llama-like model")
    return positions.expand(stream.shape[:2])
