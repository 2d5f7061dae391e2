"""SAE features of prompts: sparse codes of the residual stream at one layer, pooled over each prompt's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from saerl_lightning.errors import InputError, program
from saerl_lightning.ranges import Count, CountFrom2, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_model, digest_prompts
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.pooling import SPARSE
from saerl_lightning.signals.reading import PromptReader, ResidualStream
from saerl_lightning.signals.sae_source import SAESource
from saerl_lightning.signals.source import Part, SignalSource, in_order

TILE = 512  # tokens encoded at once; the working memory is a few times TILE * F numbers


@torch.inference_mode()
def sparse_codes(sae: Any, hidden: Float[Tensor, "n d"], tile: int = TILE) -> csr_array:
    """Encodes hidden states with a `sae_lens.SAE`.

    Args:
        sae: SAE in inference mode. Its own dtype is used.
        hidden: Residual stream of n tokens.
        tile: Number of tokens encoded at once.

    Returns:
        The non-zero features of each token, (n, F) float32. NaN stays NaN.

    Raises:
        InputError: if the SAE gives negative codes, for which the poolings are not defined.
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
    """Returns rows, columns and values of the non-zero codes."""
    if codes.is_sparse:
        (row, column), value = codes._indices(), codes._values()
        kept = value != 0
        return row[kept], column[kept], value[kept]
    row, column = codes.nonzero(as_tuple=True)
    return row, column, codes[row, column]


@contextmanager
def _kept_sparse(sae: Any) -> Iterator[None]:
    """Makes a TopK SAE return its k values as a sparse tensor instead of a dense matrix."""
    from sae_lens.saes.topk_sae import TopK

    before = sae.activation_fn
    if isinstance(before, TopK):
        sae.activation_fn = TopK(before.k, use_sparse_activations=True)
    try:
        yield
    finally:
        sae.activation_fn = before


VERSION = "1"  # raise it when the same arguments give other features


class CodeSignals(SignalSource, ABC):
    """Base class of signals made of SAE codes. Subclasses decide which SAEs they accept.

    Args:
        model: Model whose residual stream is read. It need not be the policy.
        sae: Sparse autoencoder for the model and layer.
        pooling: Pooling of a prompt's tokens into one row: mean, largest value, last token, or 1 where active anywhere.
        top: Number of strongest features kept per prompt.
        token_budget: Number of distinct tokens computed in one batch. Larger batches need more memory and, on a CPU,
            more time.
        max_tokens: Maximum number of tokens read per prompt. Longer prompts are cut at the end.

    Raises:
        InputError: if a number is out of range, or the pooling is unknown.
    """

    def __init__(
        self,
        model: ReadModel,
        sae: SAESource,
        pooling: Literal["mean", "max", "last", "binary"] = "mean",
        top: Count = 256,
        token_budget: Count = 1024,
        max_tokens: CountFrom2 = 1024,
    ) -> None:
        if pooling not in SPARSE:
            raise InputError(f"pooling is {pooling!r}; write one of {', '.join(SPARSE)}")
        self.model = model
        self.sae = sae
        self.pooling = pooling
        self.top = top
        self.token_budget = token_budget
        self.max_tokens = max_tokens
        require_in_range(self)

    @abstractmethod
    def refuse(self, sae: Any) -> None:
        """Raises an InputError if the class does not accept this SAE."""

    def features(self, prompts: Sequence[Prompt]) -> csr_array:
        """Computes float32 rows, (N, F)."""
        parts = list(self.stream(prompts))
        if not parts:
            return csr_array((0, self._load_sae().cfg.d_sae), dtype=np.float32)
        return csr_array(in_order(parts))

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        """Yields rows batch by batch. Each row depends on its prompt alone."""
        yield from self.reader()(prompts) if prompts else ()

    def reader(self) -> Callable[[Sequence[Prompt]], Iterator[Part]]:
        """Returns a `stream` that keeps the model and the SAE."""
        return PromptReader(self.model, self.pool(), self.token_budget, self.max_tokens)

    @property
    def by_row(self) -> bool:
        """True, because a row depends on its prompt alone."""
        return True

    def pool(self) -> Callable[[ResidualStream], csr_array]:
        """Loads the SAE, and returns the function that makes rows from a batch's residual stream."""
        sae, pool = self._load_sae(), SPARSE[self.pooling]
        return lambda reading: pool(sparse_codes(sae, reading.hidden), reading.paths, self.top)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of model and SAE, layer, pooling and prompts, but not of the batch size."""
        numbers = (self.pooling, str(self.top), str(self.max_tokens))
        parts = (digest_model(self.model), self.sae.fingerprint(), digest_prompts(prompts))
        return digest([type(self).__name__, VERSION, *numbers, *parts])

    def _load_sae(self) -> Any:
        sae = self.sae.load(self.model)
        self.refuse(sae)
        return sae


class SAESignals(CodeSignals):
    """SAE features: the residual stream of a prompt, expressed in few learned directions."""

    def refuse(self, sae: Any) -> None:
        """Accepts every SAE."""


class FrozenRandomSAESignals(CodeSignals):
    """Control: features of an SAE whose decoder kept its random initial weights during otherwise equal training.

    In probing, such SAEs come close to trained ones (Korznikov et al., arXiv 2602.14111). A result that they reach too
    is not due to learned directions.
    """

    def refuse(self, sae: Any) -> None:
        """Refuses an SAE that was not trained with a frozen random decoder."""
        if not sae.cfg.metadata.frozen_decoder:
            raise InputError(
                f"the SAE at '{self.sae.path}' was not trained with a frozen random decoder (its metadata say nothing of "
                f"frozen_decoder); "
                f"train one: `{program()} fit -c sae/topk.yaml -c sae/frozen_random.yaml`"
            )
