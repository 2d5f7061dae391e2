"""Hidden-state signals: the pooled residual stream that an SAE would read. They are the control of SAE features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom2, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_model, digest_prompts
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.pooling import DENSE
from saerl_lightning.signals.reading import PromptReader, ResidualStream
from saerl_lightning.signals.source import Part, SignalSource

VERSION = "1"  # raise it when the same arguments give other features


class HiddenSignals(SignalSource):
    """The pooled residual stream of one layer as dense features, or its principal components.

    Args:
        model: Model and layer whose residual stream is read.
        pooling: Pooling of a prompt's tokens into one row: mean, largest value of each column, or last token.
        components: Number of principal components, fitted to the prompts that are read; null keeps the stream
            unchanged.
        token_budget: Number of distinct tokens that are computed in one batch.
        max_tokens: Maximum number of tokens read per prompt. Longer prompts are cut at the end.

    Raises:
        InputError: if a number is out of range, or the pooling is unknown.
    """

    def __init__(
        self,
        model: ReadModel,
        pooling: Literal["mean", "max", "last"] = "mean",
        components: Count | None = None,
        token_budget: Count = 1024,
        max_tokens: CountFrom2 = 1024,
    ) -> None:
        if pooling not in DENSE:
            raise InputError(f"pooling is {pooling!r}; write one of {', '.join(DENSE)}")
        self.model = model
        self.pooling = pooling
        self.components = components
        self.token_budget = token_budget
        self.max_tokens = max_tokens
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "N F"]:
        """Computes float32 rows as wide as the residual stream, or with `components` columns.

        Raises:
            InputError: if `components` exceeds the number of prompts or columns.
        """
        _, _, width = self.model.config()
        rows = np.zeros((len(prompts), width), dtype=np.float32)
        if self.components is not None and self.components > min(rows.shape):
            raise InputError(
                f"HiddenSignals.components is {self.components}, but {len(prompts)} prompts of width {width} have at most "
                f"{min(rows.shape)}; write fewer, or null"
            )
        for positions, part in self._reader()(prompts):
            rows[positions] = np.asarray(part)
        return rows if self.components is None else _principal_components(rows, self.components)

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        """Yields rows batch by batch; with `components`, yields all at once, because each row depends on all prompts."""
        yield from super().stream(prompts) if self.components is not None else self._reader()(prompts)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of the model's content, the layer, the pooling and the prompts, but not of the batch size."""
        numbers = (self.pooling, str(self.components), str(self.max_tokens))
        return digest([type(self).__name__, VERSION, *numbers, digest_model(self.model), digest_prompts(prompts)])

    def reader(self) -> Callable[[Sequence[Prompt]], Iterator[Part]]:
        """Returns a `stream` that keeps the model."""
        return self.stream if self.components is not None else self._reader()

    def _reader(self) -> PromptReader:
        return PromptReader(self.model, self.pool(), self.token_budget, self.max_tokens)

    @property
    def by_row(self) -> bool:
        """Whether a row depends on its prompt alone. With `components` it depends on all prompts."""
        return self.components is None

    def pool(self) -> Callable[[ResidualStream], np.ndarray]:
        """Returns the function that pools a batch's residual stream into rows."""
        pool = DENSE[self.pooling]
        return lambda reading: pool(reading.hidden.float().cpu().numpy(), reading.paths)


def _principal_components(rows: Float[np.ndarray, "N d"], components: int) -> Float[np.ndarray, "N F"]:
    from sklearn.decomposition import PCA

    return PCA(components, svd_solver="full").fit_transform(rows)
