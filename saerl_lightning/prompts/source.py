"""The seam of prompt sources: anything that yields prompts."""

from abc import ABC, abstractmethod

from saerl_lightning.records import Prompt


class PromptSource(ABC):
    """A place prompts come from. The constructor only stores; `load` reads."""

    @abstractmethod
    def load(self) -> list[Prompt]:
        """Reads every prompt, in the source's own order.

        Raises:
            InputError: if the source is missing, empty, or holds a record that can't be read (named by its place).
        """
