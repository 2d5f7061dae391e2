"""SignalSource: the interface of signals, which turn prompts into feature rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array, vstack

from saerl_lightning.given import returned
from saerl_lightning.records import Prompt

Features = csr_array | np.ndarray  # (N, F)
Part = tuple[Int[np.ndarray, " n"], Features]  # positions of prompts, and their rows


class SignalSource(ABC):
    """Turns prompts into feature rows. The constructor only stores its arguments; `features` loads what is needed."""

    @abstractmethod
    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes one feature row per prompt, in the prompts' order.

        Returns:
            An (N, F) matrix, sparse if most entries are zero. Equal prompts give equal rows.
        """

    @abstractmethod
    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a cache key for these features. Sources with equal fingerprints have equal features."""

    @property
    def by_row(self) -> bool:
        """Whether a row depends only on the uid and messages of its prompt, and so is the same in every pool.

        Such rows may be cached per prompt, under the fingerprint for an empty list of prompts.
        """
        return False

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Part]:
        """Yields positions in `prompts` and their rows, in parts and in any order, until all prompts are covered.

        By default one part. Only a source that is `by_row` may yield smaller parts, because the caller may stop, and
        request the missing prompts later.
        """
        yield np.arange(len(prompts)), self.features(prompts)

    def reader(self) -> Callable[[Sequence[Prompt]], Iterator[Part]]:
        """Returns a `stream` to be called many times, which keeps what it has loaded."""
        return self.stream


def features_by(source: SignalSource, prompts: Sequence[Prompt]) -> Features:
    """Returns a source's feature rows.

    Raises:
        InputError: if they are not one row of numbers a prompt.
    """
    return returned.rows(f"{type(source).__name__}.features returned", source.features(prompts), len(prompts))


def parts_by(source: SignalSource, prompts: Sequence[Prompt]) -> Iterator[Part]:
    """Yields the parts of a source's feature rows.

    Raises:
        InputError: if a part is not one row of numbers a prompt.
    """
    whole = type(source).stream is SignalSource.stream
    said = f"{type(source).__name__}.{'features' if whole else 'stream'} returned"
    for positions, rows in source.stream(prompts):
        yield positions, returned.rows(said, rows, len(positions))


def stacked(rows: Sequence[Features]) -> Features:
    """Concatenates the rows of several parts. The parts are all dense or all sparse."""
    dense = [part for part in rows if isinstance(part, np.ndarray)]
    if dense:
        return np.concatenate(dense)
    return csr_array(vstack(rows, format="csr"))


def in_order(parts: Sequence[Part]) -> Features:
    """Joins the parts of some prompts' rows, in the prompts' order."""
    order = np.argsort(np.concatenate([positions for positions, _ in parts]))
    return stacked([rows for _, rows in parts])[order]
