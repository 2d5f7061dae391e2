"""Converts prompts to token ids: system prompt, chat template, one BOS token. Prompts are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatTemplate:
    """The system message and the maximum length of prompts for the policy.

    Args:
        system: System message for prompts without one; null adds none.
        max_prompt_tokens: Maximum length of a training prompt, in tokens with the chat template. Longer prompts are
            dropped.
    """

    system: str | None = None
    max_prompt_tokens: Count = 1024

    def __post_init__(self) -> None:
        """Refuses a maximum length below 1."""
        require_in_range(self)

    def encode(self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Applies the tokenizer's chat template, up to the start of the assistant's answer.

        Returns:
            One list of token ids per prompt, never truncated, with at most one BOS token at the start.

        Raises:
            InputError: if the tokenizer has no chat template, or the template refuses the messages.
        """
        from jinja2.exceptions import TemplateError

        if tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model, "
                f"or put a chat_template.jinja into its folder"
            )
        if not prompts:
            return []
        chats = [[dict(message) for message in self.messages(prompt)] for prompt in prompts]
        try:
            encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} refuses the messages: {error}; "
                f"if it knows no system role, write `system: null`"
            ) from error
        return [one_bos(ids, tokenizer.bos_token_id) for ids in encoded["input_ids"]]  # type: ignore[index]

    def too_long(self, ids: Sequence[Sequence[int]]) -> dict[int, str]:
        """Returns the rows of prompts longer than `max_prompt_tokens`, with the reason to drop each."""
        return {
            row: f"longer than max_prompt_tokens {self.max_prompt_tokens}"
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
