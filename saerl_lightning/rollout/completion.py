"""Rules that all engines share: where a completion ends, how it becomes text and rows, and which lengths fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.records import Rollouts, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Two words that no chat template contains; they mark where a template puts a question and an answer.
QUESTION, ANSWER = "zebra", "quartz"
# Number of tokens at a prompt's end that are searched for the assistant mark.
LOOK_BACK = 256
# Tags of an empty thought, which some templates write into former answers. They do not belong to the assistant mark.
TAGS = re.compile(r"<(think|thinking|thought|reasoning|answer)>|\[THINK\]", re.IGNORECASE)


class Reader:
    """Decodes completions into texts.

    Args:
        tokenizer: Tokenizer of the policy.
        ends: Token ids that end a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self._silent = {*ends, *_ids(tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)}
        self._mark = assistant_mark(tokenizer)

    def texts(self, prompt_ids: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[str]:
        """Decodes groups of equal size: the prompt's text after the assistant mark, then the completion.

        End-of-text, padding and BOS tokens are left out. All other special tokens stay, and so does a stop text.

        Args:
            prompt_ids: Token ids of P prompts.
            completions: Token ids of P groups of completions, one group after the other.
        """
        openings = [self.opening(ids) for ids in prompt_ids]
        spoken = [[i for i in ids if i not in self._silent] for ids in completions]
        group = len(completions) // len(prompt_ids)
        return [openings[r // group] + text for r, text in enumerate(decode(self._tokenizer, spoken))]

    def opening(self, prompt: Sequence[int]) -> str:
        """Decodes the prompt's text after its last assistant mark; "" if it has none."""
        if not self._mark:
            return ""
        end = decode(self._tokenizer, [list(prompt[-LOOK_BACK:])])[0]
        return end.rpartition(self._mark)[2] if self._mark in end else ""


def _ids(*ids: object) -> list[int]:
    """Returns the values that are token ids; a tokenizer may lack a token."""
    return [i for i in ids if isinstance(i, int)]


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]) -> list[str]:
    """Decodes the rows, with special tokens and without any cleaning of spaces."""
    return tokenizer.batch_decode(list(rows), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def assistant_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Finds the text that a chat template writes before every answer, such as "<|im_start|>assistant".

    It is the text between a question and the answer, as far as two renderings agree: a new question with the generation
    prompt, and an older question with its answer. It is "" if the template marks nothing, or refuses a chat of two
    questions.
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
    """Renders a chat with its generation prompt, encodes it, and decodes the tokens again."""
    encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return decode(tokenizer, [encoded["input_ids"]])[0]  # type: ignore[index]


# Maps the completions so far to whether their last token ends them.
EndTest = Callable[[Int[Tensor, "R t"]], Bool[Tensor, " R"]]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a completion: those of the model's generation config and of the tokenizer."""
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    ids = {i for i in [*several, tokenizer.eos_token_id] if i is not None}
    if not ids:
        raise InputError(
            f"neither the tokenizer nor the generation config of {model.name_or_path} names an end-of-text token; "
            "write `eos_token` in its tokenizer_config.json"
        )
    return sorted(ids)


def pack_rollouts(
    reader: Reader,
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    truncated: Sequence[bool],
    version: int,
) -> Rollouts:
    """Packs groups of completions of equal size, with their texts, into padded rows."""
    texts, group_size = reader.texts(prompt_ids, completions), len(completions) // len(prompt_ids)
    return Rollouts.pack(prompt_ids, completions, logprobs, truncated, texts, group_size, version, reader.pad)


def ends_in_stop(tokenizer: PreTrainedTokenizerBase, completion: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the completion ends with one of the stop texts.

    Only as many tokens are decoded as the longest stop text can have: a token has at least one byte, and the last one
    may contain more text after the stop.
    """
    span = max(len(text.encode()) for text in stop) + 1
    tail = decode(tokenizer, [list(completion[-span:])])[0]
    return any(text in tail for text in stop)


def end_test(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> EndTest:
    """Builds the test of whether completions end with their last token: an end-of-text token or a stop text."""
    ids = torch.tensor(end_ids(model, tokenizer), device=model.device)

    def ends(so_far: Int[Tensor, "R t"]) -> Bool[Tensor, " R"]:
        ended = torch.isin(so_far[:, -1], ids)
        if sampling.stop:
            stops = [ends_in_stop(tokenizer, row, sampling.stop) for row in so_far.tolist()]
            ended |= torch.tensor(stops, device=ended.device)
        return ended

    return ends


def check_lengths(prompt_ids: Sequence[Sequence[int]], sampling: Sampling, max_model_len: int) -> None:
    """Refuses empty prompts, and prompts that leave no room for a completion.

    Raises:
        InputError: if a prompt is empty, or prompt plus `max_tokens` is longer than `max_model_len`.
    """
    if not prompt_ids:
        raise InputError("there are no prompts to complete; give at least one")
    shortest, longest = min(map(len, prompt_ids)), max(map(len, prompt_ids))
    if shortest == 0:
        raise InputError("a prompt has no tokens; give every prompt at least one")
    if longest + sampling.max_tokens > max_model_len:
        raise InputError(
            f"a prompt of {longest} tokens and max_tokens {sampling.max_tokens} exceed the engine's {max_model_len} "
            "tokens; lower max_tokens, drop long prompts, or raise the maximal model length"
        )
