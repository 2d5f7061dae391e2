"""The seam of signals: feature rows about prompts, one a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from saerl_lightning.records import Prompt

Features = csr_array | np.ndarray  # (N, F)


class SignalSource(ABC):
    """Turns prompts into feature rows. The constructor only stores; `features` loads what it needs."""

    @abstractmethod
    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Computes one feature row a prompt, in the prompts' order.

        Returns:
            An (N, F) matrix, sparse where most entries are zero. The same prompts give the same rows.
        """

    @abstractmethod
    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Names this computation over these prompts; equal fingerprints promise equal features (the cache key)."""
