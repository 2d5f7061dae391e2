"""AnswerReward: compares the completion's answer with the prompt's as text, for prompts that are not mathematics."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, cast

import regex
import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.forms import value_at
from saerl_lightning.ranges import Deadline, Finite, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import given_answer
from saerl_lightning.reward.reward import Reward, require_answer

Difference = Literal["form", "case", "punctuation", "articles", "spacing"]
ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
# Between digits, and before the first digit of a number, a mark is part of the number.
IN_NUMBERS = re.compile(r"(?<=\d)[.,:/](?=\d)|(?<!\w)[-−.](?=\d)")
WITHOUT: Mapping[Difference, Callable[[str], str]] = {  # in the order in which they are applied
    "form": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "punctuation": lambda text: _without_punctuation(text),
    "articles": lambda text: ARTICLES.sub(" ", text),
    "spacing": lambda text: " ".join(text.split()),
}

log = logging.getLogger(__name__)


class AnswerReward(Reward):
    r"""Gives 1 where the completion's answer is the prompt's answer, compared as text, else 0.

    For prompts whose answers are words: names, labels, options, commands. `MathReward` knows when two numbers or formulas
    are equal; here `0.5` and `1/2` differ.

    Args:
        pattern: Python regular expression that finds the answer, such as `Answer: *(.+)`. The last match counts, and of
            it the first group, if there is one. Without a match the grade is 0. Null takes what stands in the last
            `<answer>` tags, or else in the last `\boxed`, or else the whole completion. What stands before the last
            `</think>` never counts.
        accepted: Column with further answers that are right, as a text or a list of texts; dotted, where it lies deeper,
            as `answer.aliases`.
        ignore: Differences that do not count: `form` (Unicode's NFKC, such as full-width letters), `case`, `punctuation`
            (but not inside numbers), `articles` (a, an, the) and `spacing`. An empty list compares exactly.
        weight: Weight of the reward in the weighted sum.
        deadline_s: Largest time to search a completion for the pattern, in seconds. Beyond it, the reward is NaN.
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if `pattern` is no regular expression, or `ignore` names something else.
    """

    def __init__(
        self,
        pattern: str | None = None,
        accepted: str | None = None,
        ignore: list[Difference] = ["form", "case", "punctuation", "spacing"],  # noqa: B006 (it is not changed)
        weight: Finite = 1.0,
        deadline_s: Deadline = 1.0,
        name: str | None = None,
    ) -> None:
        try:
            self.pattern = None if pattern is None else regex.compile(pattern)
        except regex.error as error:
            raise InputError(f"pattern {pattern!r} is no regular expression: {error}") from error
        if unknown := [each for each in ignore if each not in WITHOUT]:
            raise InputError(f"AnswerReward.ignore has {unknown[0]!r}; write some of {', '.join(WITHOUT)}")
        self.accepted = accepted
        self.ignore = list(ignore)
        self.weight = weight
        self.deadline_s = deadline_s
        self._name = name
        self.overruns = 0  # number of completions that took too long
        require_in_range(self)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts without any answer.

        Raises:
            InputError: naming the first such prompt, or the column of accepted answers that no prompt has.
        """
        if self.accepted and prompts and not any(_listed(prompt, self.accepted) for prompt in prompts):
            there = ", ".join(sorted(frozenset[str]().union(*(prompt.columns for prompt in prompts))))
            raise InputError(
                f"AnswerReward.accepted is '{self.accepted}', and no prompt has it; the columns are {there}"
            )
        for prompt in prompts:
            if not any(each.strip() for each in self.answers(prompt)):
                require_answer(prompt, "AnswerReward")

    def answers(self, prompt: Prompt) -> list[str]:
        """Returns the answers that are right, as they are written."""
        return [prompt.answer, *(_listed(prompt, self.accepted) if self.accepted else [])]

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Compares every completion's answer with those of its prompt."""
        right = [{normalised(each, self.ignore) for each in self.answers(prompt) if each.strip()} for prompt in prompts]
        scores = [self._score(text, right[row // rollouts.group_size]) for row, text in enumerate(rollouts.texts)]
        return torch.tensor(scores, device=rollouts.mask.device).view(len(prompts), rollouts.group_size)

    def vote(self, text: str) -> str:
        """Returns the answer, as it is compared; "" for none."""
        try:
            return normalised(self._found(text) or "", self.ignore)
        except TimeoutError:
            return ""

    def _score(self, text: str, right: Collection[str]) -> float:
        try:
            found = self._found(text)
        except TimeoutError:
            if not self.overruns:
                log.warning("AnswerReward's pattern ran past %g s; the completion is not graded", self.deadline_s)
            self.overruns += 1
            return math.nan
        return float(bool(found) and normalised(found, self.ignore) in right)

    def _found(self, text: str) -> str | None:
        text = text.rpartition("</think>")[2]
        if self.pattern is None:
            return given_answer(text)
        found = None
        for found in self.pattern.finditer(text, timeout=self.deadline_s):  # noqa: B007 (the last one counts)
            pass
        return found and (found[1] if found.re.groups else found[0])


def normalised(text: str, ignore: Collection[Difference]) -> str:
    """Writes a text without the differences that do not count.

    Args:
        text: Text of an answer.
        ignore: Names of the differences.
    """
    for name, without in WITHOUT.items():
        if name in ignore:
            text = without(text) or text  # an answer that is a mark alone stays what it is
    return text


def _without_punctuation(text: str) -> str:
    kept = {found.start() for found in IN_NUMBERS.finditer(text)}
    return "".join(c for i, c in enumerate(text) if i in kept or not unicodedata.category(c).startswith("P"))


def _listed(prompt: Prompt, path: str) -> list[str]:
    """The texts at a column's place."""
    found = value_at(cast("dict", prompt.columns), path)
    return [str(each) for each in (found if isinstance(found, list) else [found]) if each is not None]
