"""Token lists of a whole text in one array: four bytes a token, where Python's lists need nine times as much."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.signals.model import encode

STRETCH = 1024  # documents that are tokenized together


class TokenLists(Sequence[list[int]]):
    """A sequence of token lists. A slice, or rows in another order, share the tokens.

    Args:
        tokens: Tokens of all lists, one after another.
        starts: Position in `tokens` at which each list starts.
        lengths: Length of each list.
    """

    def __init__(
        self, tokens: Int[np.ndarray, " t"], starts: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]
    ) -> None:
        self.tokens = tokens
        self.starts = starts
        self.lengths = lengths

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> TokenLists:
        """Collects token lists, each different one once, without those of one token, whose activations are not used."""
        tokens, lengths, seen = array("i"), array("q"), set[bytes]()
        for row in rows:
            held = array("i", row)
            known = hashlib.blake2b(held.tobytes(), digest_size=16).digest()
            if len(held) > 1 and known not in seen:
                seen.add(known)
                tokens.extend(held)
                lengths.append(len(held))
        sizes = np.array(lengths, dtype=np.int64)
        return cls(np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32), sizes.cumsum() - sizes, sizes)

    def __len__(self) -> int:
        """Returns the number of lists."""
        return len(self.lengths)

    def __getitem__(self, place: Any) -> Any:
        """Returns a list, or the lists of a slice or an array of positions."""
        if isinstance(place, slice | np.ndarray):
            return TokenLists(self.tokens, self.starts[place], self.lengths[place])
        start = int(self.starts[place])
        return self.tokens[start : start + int(self.lengths[place])].tolist()

    def digest(self, head: bytes) -> str:
        """Returns a digest of some settings and of all tokens."""
        digest = hashlib.sha256(head)
        for row in self:
            digest.update(np.array([len(row), *row], dtype="<i8").tobytes())
        return digest.hexdigest()[:12]


def tokenized(source: PromptSource, tokenizer: Any, max_tokens: int, chat: bool) -> Iterator[Sequence[int]]:
    """Yields the tokens of a source's texts. Only one stretch of them is in memory.

    Args:
        source: Source of the texts.
        tokenizer: Tokenizer of the model that reads them.
        max_tokens: Maximum number of tokens per text. Longer ones are cut at the end.
        chat: Whether the tokenizer's chat template is applied.
    """
    prompts: Iterator[Prompt] = iter(source.stream())
    while stretch := list(islice(prompts, STRETCH)):
        yield from encode(stretch, tokenizer, max_tokens, chat)
