"""PromptSource and ProbeReference: the interfaces of prompt sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saerl_lightning.records import Prompt


@dataclass(frozen=True)
class Reading:
    """Prompts of a source, and lines for the user that say how they were read."""

    prompts: list[Prompt]
    said: tuple[str, ...] = ()


class PromptSource(ABC):
    """A source of prompts. The constructor only stores its arguments; `load` reads."""

    @abstractmethod
    def load(self) -> list[Prompt]:
        """Reads all prompts, in the source's own order.

        Raises:
            InputError: if the source is missing or empty, or a record is invalid (named by its position).
        """

    def stream(self) -> Iterator[Prompt]:
        """Yields the prompts one by one. By default all are read first; a source of large text holds one at a time."""
        yield from self.load()

    def read(self) -> Reading:
        """Reads all prompts as `load` does, with what is to be said of them. By default nothing is said."""
        return Reading(self.load())


class ProbeReference(ABC):
    """Makes labelled prompts that are only used to fit probes. The constructor only stores its arguments."""

    @abstractmethod
    def prompts(self, pool: Sequence[Prompt]) -> list[Prompt]:
        """Returns labelled prompts with uids that are not in the pool. Equal pools give equal prompts."""
