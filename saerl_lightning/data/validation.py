"""Named sets to evaluate on, each with its own sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from saerl_lightning.data.pool import PromptPool
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ValidationSet:
    """A set to evaluate on, with its own sampling.

    Args:
        source: path of a prompts file, or a source.
        sampling: how completions are drawn; null takes the datamodule's `val_sampling`.
        limit: how many of its first prompts to use; null uses all.
    """

    source: str | PromptSource
    sampling: Sampling | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuses a limit that leaves nothing."""
        if self.limit is not None and self.limit < 1:
            raise InputError(f"a set's limit is {self.limit}; write 1 or more, or null to use all of {self.source}")


@dataclass(frozen=True)
class EvaluationPool:
    """A named pool that is evaluated, and how its completions are drawn."""

    name: str
    pool: PromptPool
    sampling: Sampling

    @classmethod
    def read(
        cls,
        name: str,
        given: str | PromptSource | ValidationSet,
        chat: ChatTemplate,
        tokenizer: PreTrainedTokenizerBase,
        default: Sampling,
    ) -> EvaluationPool:
        """Reads a named set; `default` is for sets without a sampling of their own.

        Raises:
            InputError: if no prompt of it is short enough.
        """
        wanted = given if isinstance(given, ValidationSet) else ValidationSet(given)
        pool = PromptPool.read(name, wanted.source, chat, tokenizer, wanted.limit)
        if not pool.servable():
            raise InputError(f"set '{name}' has no prompt that is short enough; raise data.chat.max_prompt_tokens")
        return cls(name, pool, wanted.sampling or default)

    def batches(self, size: int, rank: int, world: int) -> list[list[int]]:
        """Rows of this rank (every world-th), cut into batches of at most `size`."""
        rows = self.pool.servable()[rank::world]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def warn_of_shared(self, training: PromptPool) -> None:
        """Warns where prompts of this set are trained on, with their count."""
        if shared := self.pool.shared(training):
            total = len(self.pool.prompts)
            rank_zero_warn(f"validation set '{self.name}' shares {shared} of its {total} prompts with training")
