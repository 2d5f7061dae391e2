"""PromptPool: prompts with their token ids, read from a source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from saerl_lightning.prompts.chat import ChatTemplate, TokenIds
from saerl_lightning.prompts.labels import read_labels, with_labels
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptPool:
    """Prompts with their token ids, and the reason why some are too long to be served."""

    prompts: list[Prompt]  # N
    ids: TokenIds  # N
    too_long: dict[int, str]  # pool row -> reason

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        return f"<PromptPool: {len(self.prompts)} prompts, {len(self.too_long)} of them too long>"

    @classmethod
    def read(
        cls,
        name: str,
        source: PromptSource,
        chat: ChatTemplate,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> PromptPool:
        """Reads a source, encodes its first `limit` prompts, and says how they were read and how many are too long."""
        reading = source.read()
        for line in reading.said:
            rank_zero_info(f"{name}: {line}")
        prompts = reading.prompts[:limit]
        ids = TokenIds(chat.stream(prompts, tokenizer))
        pool = cls(prompts, ids, chat.too_long(ids))
        if pool.too_long:
            rank_zero_info(f"{name}: {len(pool.too_long)} of {len(prompts)} prompts are too long and dropped")
        return pool

    def labelled(self, file: str | None) -> PromptPool:
        """Returns the pool with labels from a file added; None adds nothing."""
        return self if file is None else replace(self, prompts=with_labels(self.prompts, read_labels(file), file))

    def batch(self, rows: Iterable[int], places: Sequence[int] = ()) -> PromptBatch:
        """Makes a batch of the prompts at the given rows.

        Args:
            rows: Rows of the pool.
            places: Places of the prompts in the batch of all processes; their positions if none are given.
        """
        members = list(rows)
        return PromptBatch([self.prompts[r] for r in members], [self.ids[r] for r in members], members, places)

    def servable(self) -> list[int]:
        """Returns the rows that are not too long, in order."""
        return [row for row in range(len(self.prompts)) if row not in self.too_long]

    def without(self, texts: Set[str]) -> PromptPool:
        """Returns the pool without prompts whose normalised text is among the given ones."""
        kept = [row for row, prompt in enumerate(self.prompts) if prompt.normalised_text not in texts]
        place = {row: i for i, row in enumerate(kept)}
        too_long = {place[row]: why for row, why in self.too_long.items() if row in place}
        return PromptPool([self.prompts[row] for row in kept], TokenIds(self.ids[row] for row in kept), too_long)
