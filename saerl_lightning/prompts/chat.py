"""ChatTemplate: turns prompts into token ids by the tokenizer's chat template. Nothing is ever cut."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_text
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000  # prompts that are encoded at once: tokenizers hold far more than the ids until they return


class TokenIds:
    """Token ids of N prompts in one array, 4 bytes a token; lists of integers take ten times as much.

    Args:
        rows: Token ids of each prompt.
    """

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        self._tokens = array("i")
        self._ends = array("q", [0])
        for row in rows:
            self._tokens.extend(row)
            self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        """Returns the number of prompts."""
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> list[int]:
        """Returns the token ids of the prompt at a position from 0."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._tokens[self._ends[row] : self._ends[row + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        """Iterates over the prompts."""
        return (self[row] for row in range(len(self)))


TOO_LONG = "longer than max_prompt_tokens"  # how the reason for dropping such a prompt begins


@dataclass(frozen=True)
class ChatTemplate:
    """Settings for writing prompts for the policy; the command `show` prints the result.

    Args:
        system: System message for prompts without one; null adds none.
        max_prompt_tokens: Maximum prompt length in tokens, with the template; longer prompts are dropped.
        template: Jinja file of a chat template that replaces the tokenizer's own; null keeps that.
        options: Variables of the chat template, as in {enable_thinking: false}; null gives none.
        prefill: Text that every answer begins with, as in "<think>\\n". The policy goes on after it; rewards see it.
    """

    system: str | None = None
    max_prompt_tokens: Count = 1024
    template: str | None = None
    options: Mapping[str, bool | int | float | str] | None = None
    prefill: str = ""

    def __post_init__(self) -> None:
        """Refuses a length below 1."""
        require_in_range(self)

    def fitted(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Gives the tokenizer the template of the file, so that engines and rewards find the same role marks.

        Raises:
            InputError: if the file can't be read.
        """
        if self.template is not None:
            tokenizer.chat_template = read_text(self.template, "the chat template")
        return tokenizer

    def encode(self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Applies the tokenizer's chat template, up to the start of the assistant's answer or its prefill.

        Returns:
            One list of token ids per prompt, never truncated, with at most one BOS token at the start.

        Raises:
            InputError: if the tokenizer has no chat template, or its template refuses the messages.
        """
        return list(self.stream(prompts, tokenizer))

    def stream(self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
        """Encodes prompts as `encode` does, and yields them one by one, which takes the memory of a thousand."""
        if tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model, "
                f"put a chat_template.jinja into its folder, or name a file as data.chat.template"
            )
        for start in range(0, len(prompts), CHUNK):
            part = prompts[start : start + CHUNK]
            chats = [[dict(message) for message in self.messages(prompt)] for prompt in part]
            texts = [text + self.prefill for text in self._rendered(chats, tokenizer)]
            # The template writes the special tokens itself; a tokenizer would add BOS once more.
            encoded = tokenizer(texts, add_special_tokens=False)
            for ids in encoded["input_ids"]:  # type: ignore[union-attr]
                yield one_bos(ids, tokenizer.bos_token_id)  # type: ignore[arg-type]

    def _rendered(self, chats: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        own = inspect.signature(tokenizer.apply_chat_template).parameters
        variables: dict[str, Any] = dict(self.options or {})
        if taken := sorted(set(variables) & set(own)):
            raise InputError(
                f"data.chat.options names '{taken[0]}', which is a setting of the tokenizer's own method and no variable of "
                "its chat template; leave it out"
            )
        whose = f"of {tokenizer.name_or_path!r}" if self.template is None else f"in '{self.template}'"
        try:
            rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False, **variables)
        except TemplateSyntaxError as error:
            said = f"line {error.lineno}: {str(error.message).rstrip('.')}"
            raise InputError(f"the chat template {whose} is no Jinja, {said}; correct it, or name another") from error
        except TemplateError as error:
            system = any(message["role"] == "system" for chat in chats for message in chat)
            instead = "if it knows no system role, write `system: null`" if system else "correct it, or name another"
            raise InputError(f"the chat template {whose} refuses the messages: {error}; {instead}") from error
        return [str(text) for text in rendered]

    def too_long(self, ids: Iterable[Sequence[int]]) -> dict[int, str]:
        """Maps each row whose prompt is longer than `max_prompt_tokens` to the reason for dropping it."""
        return {
            row: f"{TOO_LONG} {self.max_prompt_tokens}"
            for row, prompt in enumerate(ids)
            if len(prompt) > self.max_prompt_tokens
        }

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        """The prompt's chat, with the system message in front where the prompt brings none."""
        if self.system is None or any(message["role"] == "system" for message in prompt.messages):
            return prompt.messages
        return ({"role": "system", "content": self.system}, *prompt.messages)


def one_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """Reduces repeated BOS tokens at the start to one, because template and tokenizer may both add one."""
    start = 0
    while bos is not None and list(ids[start : start + 2]) == [bos, bos]:
        start += 1
    return list(ids[start:])
