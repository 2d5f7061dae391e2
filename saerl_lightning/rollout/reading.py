"""Completions as texts: what graders, votes and tables read.

Tags that are special tokens stay, and so does what the generation prompt wrote for the policy: where a template opens
`<think>`, the completion only closes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two words that no template writes by itself, to find where it puts a question and an answer.
QUESTION, ANSWER = "zebra", "quartz"
LOOK_BACK = 256  # tokens at a prompt's end among which the assistant's mark is looked for
# Templates that write an empty thought into former answers have these behind the mark; they are no part of it.
TAGS = re.compile(r"<(think|thinking|thought|reasoning|answer)>|\[THINK\]", re.IGNORECASE)


class Reader:
    """Turns completions into texts.

    Args:
        tokenizer: of the policy.
        ends: token ids that end a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self._silent = {*ends, *_ids(tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)}
        self._mark = assistant_mark(tokenizer)

    def texts(self, prompt_ids: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[str]:
        """The texts of equal groups: what the prompt wrote behind the assistant's mark, then the completion.

        Left out are the end-of-text, padding and BOS tokens; all other special tokens stay, and so does a stop text.

        Args:
            prompt_ids: P prompts.
            completions: P groups behind one another.
        """
        openings = [self.opening(ids) for ids in prompt_ids]
        spoken = [[i for i in ids if i not in self._silent] for ids in completions]
        group = len(completions) // len(prompt_ids)
        return [openings[r // group] + text for r, text in enumerate(decode(self._tokenizer, spoken))]

    def opening(self, prompt: Sequence[int]) -> str:
        """What stands behind the last assistant's mark of a prompt; "" where there is no such mark."""
        if not self._mark:
            return ""
        end = decode(self._tokenizer, [list(prompt[-LOOK_BACK:])])[0]
        return end.rpartition(self._mark)[2] if self._mark in end else ""


def _ids(*ids: object) -> list[int]:
    """Those that are token ids; a tokenizer may lack a token."""
    return [i for i in ids if isinstance(i, int)]


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]) -> list[str]:
    """The rows as texts, special tokens included, without any cleaning."""
    return tokenizer.batch_decode(list(rows), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def assistant_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a chat template writes before every answer: from the question's end to where former answers begin.

    The generation prompt may go on behind it; former answers do not have that. "" where the template marks nothing, or
    refuses a chat of two questions.
    """
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        return ""
    asked, again = {"role": "user", "content": QUESTION}, {"role": "user", "content": "again"}
    chats = [[asked], [asked, {"role": "assistant", "content": ANSWER}, again]]
    try:
        now, before = (_rendered(tokenizer, chat) for chat in chats)
    except (TemplateError, TypeError, ValueError):
        return ""
    after, between = now.partition(QUESTION)[2], before.partition(QUESTION)[2].partition(ANSWER)[0]
    mark = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(after, between, strict=False)))
    tag = TAGS.search(mark)
    mark = mark[: tag.start()] if tag else mark
    return mark if mark.strip() else ""


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """A chat up to where the assistant begins, as its tokens read."""
    encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return decode(tokenizer, [encoded["input_ids"]])[0]  # type: ignore[index]
