"""A token's SAE features as a sparse row: encoded in tiles of tokens, never a dense (tokens, F) matrix.

The SAE's own `encode` does the mathematics, of whatever architecture; this only keeps its result sparse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from saerl_lightning.errors import InputError

TILE = 512  # tokens encoded at once: the working memory is a few times TILE * F


@torch.inference_mode()
def sparse_codes(sae: Any, hidden: Float[Tensor, "n d"], tile: int = TILE) -> csr_array:
    """Encodes tokens with a `sae_lens.SAE`.

    Args:
        sae: an inference SAE; its own dtype is computed in.
        hidden: residual stream.
        tile: tokens encoded at once.

    Returns:
        (n, F) float32, the non-zero features of each token; NaN stays NaN.

    Raises:
        InputError: if the SAE gives negative codes, which pooling has no meaning for.
    """
    rows, columns, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    with _kept_sparse(sae), torch.sparse.check_sparse_tensor_invariants(enable=False):
        for start in range(0, len(hidden), tile):
            row, column, value = _active(sae.encode(hidden[start : start + tile].to(sae.device)))
            rows.append(row.cpu().numpy() + start)
            columns.append(column.cpu().numpy())
            values.append(value.float().cpu().numpy())
    data = np.concatenate(values)
    if (data < 0).any():
        raise InputError(
            f"a {sae.cfg.architecture()} SAE gives negative codes; use topk, batchtopk, jumprelu or standard"
        )
    cells = (np.concatenate(rows), np.concatenate(columns))
    return csr_array((data, cells), shape=(len(hidden), sae.cfg.d_sae))


def _active(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the non-zero codes."""
    if codes.is_sparse:
        (row, column), value = codes._indices(), codes._values()
        kept = value != 0
        return row[kept], column[kept], value[kept]
    row, column = codes.nonzero(as_tuple=True)
    return row, column, codes[row, column]


@contextmanager
def _kept_sparse(sae: Any) -> Iterator[None]:
    """Lets a TopK SAE give its k values as they are, not scattered into a dense matrix."""
    from sae_lens.saes.topk_sae import TopK

    before = sae.activation_fn
    if isinstance(before, TopK):
        sae.activation_fn = TopK(before.k, use_sparse_activations=True)
    try:
        yield
    finally:
        sae.activation_fn = before
