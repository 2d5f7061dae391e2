"""The seam of probe references: prompts with known labels that teach the operations' probes and are never served."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from saerl_lightning.records import Prompt


class ProbeReference(ABC):
    """Makes the prompts that only probes see. The constructor only stores."""

    @abstractmethod
    def prompts(self, pool: Sequence[Prompt]) -> list[Prompt]:
        """Returns labelled prompts, each with a uid that the pool has not; the same pool gives the same prompts."""
