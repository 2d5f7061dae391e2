"""From prompts to the token ids that a read model sees. Long prompts are cut, because a signal needs no ending.

The policy's own encoding is `prompts/chat.py`: it never cuts, and refuses models without a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int = 1024) -> list[list[int]]:
    """Applies the tokenizer's chat template, up to where the assistant begins; a base model reads the plain text.

    Args:
        prompts: what is read.
        tokenizer: of the model that reads; without a chat template it reads `Prompt.text`, with the special tokens that
            the tokenizer adds by itself.
        max_tokens: longest list; longer ones lose their end.

    Returns:
        One list of token ids a prompt, with the BOS token at most once in front.

    Raises:
        InputError: if `max_tokens` is below 1, or the template refuses a prompt's messages.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; write 1 or more")
    if not prompts:
        return []
    if tokenizer.chat_template is None:
        ids = tokenizer([prompt.text for prompt in prompts])["input_ids"]
    else:
        ids = _chats(prompts, tokenizer)
    return [_one_bos(row, tokenizer.bos_token_id)[:max_tokens] for row in ids]  # type: ignore[union-attr]


def _chats(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> Sequence[Sequence[int]]:
    from jinja2.exceptions import TemplateError

    chats = [[dict(message) for message in prompt.messages] for prompt in prompts]
    try:
        encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the messages: {error}; "
            f"take out the roles that it does not know"
        ) from error
    return encoded["input_ids"]  # type: ignore[index,return-value]


def _one_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """The ids with a run of BOS tokens in front reduced to one: a template and its tokenizer may both write it."""
    start = 0
    while bos is not None and list(ids[start : start + 2]) == [bos, bos]:
        start += 1
    return list(ids[start:])
