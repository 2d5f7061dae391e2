"""From a prompt to token ids: system prompt, chat template, one BOS. Nothing is ever cut."""

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
    """How a prompt is written for the policy.

    Args:
        system: system message for prompts that bring none; null adds none.
        max_prompt_tokens: longest prompt that is trained on, in tokens with the template; longer ones are dropped.
    """

    system: str | None = None
    max_prompt_tokens: Count = 1024

    def __post_init__(self) -> None:
        """Refuses a length that no prompt has."""
        require_in_range(self)

    def encode(self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Applies the tokenizer's chat template, up to where the assistant begins.

        Returns:
            One list of token ids a prompt, never truncated, with the BOS token at most once in front.

        Raises:
            InputError: if the tokenizer has no chat template, or its template refuses the messages.
        """
        from jinja2.exceptions import TemplateError

        if tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model, "
                f"or put a chat_template.jinja into its folder"
            )
        if not prompts:
            return []
        chats = [[dict(message) for message in self._messages(prompt)] for prompt in prompts]
        try:
            encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} refuses the messages: {error}; "
                f"if it knows no system role, write `system: null`"
            ) from error
        return [_one_bos(ids, tokenizer.bos_token_id) for ids in encoded["input_ids"]]  # type: ignore[index]

    def too_long(self, ids: Sequence[Sequence[int]]) -> dict[int, str]:
        """Names the rows whose prompt is longer than `max_prompt_tokens`, each with the reason to drop it."""
        return {
            row: f"longer than max_prompt_tokens {self.max_prompt_tokens}"
            for row, prompt in enumerate(ids)
            if len(prompt) > self.max_prompt_tokens
        }

    def _messages(self, prompt: Prompt) -> tuple[Message, ...]:
        if self.system is None or any(message["role"] == "system" for message in prompt.messages):
            return prompt.messages
        return ({"role": "system", "content": self.system}, *prompt.messages)


def _one_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """The ids with a run of BOS tokens in front reduced to one: a template and its tokenizer may both write it."""
    start = 0
    while bos is not None and list(ids[start : start + 2]) == [bos, bos]:
        start += 1
    return list(ids[start:])
