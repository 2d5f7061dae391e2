"""The seam of prompt sources: anything that yields prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from saerl_lightning.records import Prompt


class PromptSource(ABC):
    """A place prompts come from. The constructor only stores; `load` reads."""

    @abstractmethod
    def load(self) -> list[Prompt]:
        """Reads every prompt, in the source's own order.

        Raises:
            InputError: if the source is missing, empty, or holds a record that can't be read (named by its place).
        """


class ProbeReference(ABC):
    """Makes the prompts that only probes see. The constructor only stores."""

    @abstractmethod
    def prompts(self, pool: Sequence[Prompt]) -> list[Prompt]:
        """Returns labelled prompts, each with a uid that the pool has not; the same pool gives the same prompts."""
