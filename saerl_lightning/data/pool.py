"""Pools of prompts with their token ids: read, encoded, and with the prompts that are too long named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptPool:
    """N prompts, their token ids, and why some can't be served."""

    prompts: list[Prompt]  # N
    ids: list[list[int]]  # N
    too_long: dict[int, str]  # pool row -> reason

    @classmethod
    def read(
        cls,
        name: str,
        source: str | PromptSource,
        chat: ChatTemplate,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> PromptPool:
        """Loads a source, or the file at a path, encodes its first `limit` prompts, and says how many are too long."""
        reader = FilePrompts(source) if isinstance(source, str) else source
        prompts = reader.load()[:limit]
        ids = chat.encode(prompts, tokenizer)
        pool = cls(prompts, ids, chat.too_long(ids))
        if pool.too_long:
            rank_zero_info(f"{name}: {len(pool.too_long)} of {len(prompts)} prompts are too long and dropped")
        return pool

    def batch(self, rows: Iterable[int]) -> PromptBatch:
        """Collates the prompts at the given rows."""
        members = list(rows)
        return PromptBatch([self.prompts[r] for r in members], [self.ids[r] for r in members], members)

    def servable(self) -> list[int]:
        """Rows that are not too long, in order."""
        return [row for row in range(len(self.prompts)) if row not in self.too_long]

    def shared(self, other: PromptPool) -> int:
        """Counts prompts whose text stands in the other pool too."""
        texts = {prompt.text for prompt in other.prompts}
        return sum(prompt.text in texts for prompt in self.prompts)
