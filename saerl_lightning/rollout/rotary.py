"""Rotary position embedding as one complex product a step.

transformers pairs entry i of a head with entry i + D/2. Stored as neighbours, a pair is one complex number, and rotating
it is one product. Queries and keys are reordered alike, which leaves their products as they are; the reordering is done
once, in the rows of the weights that make them.

Source: Su et al. 2021, RoFormer (arXiv 2104.09864), equation 34.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pairs_as_neighbours(rows: Float[Tensor, "N ..."], width: int) -> Float[Tensor, "N ..."]:
    """Reorders the entries of each head of `width`: 0, D/2, 1, D/2 + 1, and so on."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def rotation_table(model: PreTrainedModel, positions: int) -> Complex[Tensor, "L 1 half"]:
    """The rotations of positions 0 to L - 1, the model's own, rounded to its dtype as the model rounds them."""
    numbers = torch.arange(positions, device=model.device)[None]  # (1, L)
    like = torch.zeros(1, dtype=model.dtype, device=model.device)
    cos, sin = model.model.rotary_emb(like, numbers)  # (1, L, D) each, both halves alike
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())


def rotate(heads: Float[Tensor, "R H D"], rotations: Complex[Tensor, "R 1 half"]) -> None:
    """Rotates every head of a row by the row's position, in place; in half precision with transformers' roundings."""
    pairs = heads.view(*heads.shape[:2], -1, 2)  # (R, H, D/2, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotations)
        return
    (first, second), cos, sin = pairs.unbind(-1), rotations.real.to(heads.dtype), rotations.imag.to(heads.dtype)
    pairs.copy_(torch.stack([first * cos - second * sin, second * cos + first * sin], -1))
