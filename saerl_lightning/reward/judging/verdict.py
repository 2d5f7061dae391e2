"""VerdictReader: how the grade is read from a judge's reply."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import regex

from saerl_lightning.errors import InputError
from saerl_lightning.reward.judging.reply import Reply

SEARCH_S = 1.0  # largest time to search a reply


class NoVerdict(ValueError):
    """A reply from which no grade can be read."""


@dataclass(frozen=True)
class VerdictReader:
    """Reads grades.

    Args:
        pattern: Regular expression of the verdict. The last match counts, and of it the first group, if there is one.
        words: Grades of the words that may be matched, compared without regard to case; null reads a number.
        scale: Lowest and highest number, which become 0 and 1; null takes numbers as they are.
    """

    pattern: str
    words: Mapping[str, float] | None
    scale: tuple[float, float] | None

    def check(self) -> None:
        """Refuses a pattern that is no regular expression, no words at all, and a scale without a length."""
        assert self._compiled is not None
        if self.words is not None and not self.words:
            raise InputError(
                f"JudgeReward.verdicts is {dict(self.words)}; write words with numbers, as {{yes: 1, no: 0}}"
            )
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise InputError(
                f"JudgeReward.scale is {list(self.scale)}; write the lowest number and the highest, as [0, 10]"
            )

    @cached_property
    def _compiled(self) -> regex.Pattern[str]:
        try:
            return regex.compile(self.pattern)
        except regex.error as error:
            raise InputError(f"JudgeReward.pattern {self.pattern!r} is no regular expression: {error}") from error

    def grade(self, reply: Reply) -> float:
        """Reads the grade of a reply.

        Raises:
            NoVerdict: if there is none, with what stands there instead.
        """
        text = reply.text.rpartition("</think>")[2]
        if reply.cut and "<think>" in text:
            raise NoVerdict("was cut at max_tokens before its thoughts ended; raise max_tokens")
        found, end = self._last(text)
        if self.words is not None:
            return self._of_word(found)
        if reply.cut and not text[end:].strip(".,"):
            raise NoVerdict(f"was cut at max_tokens in its number, after {found!r}; raise max_tokens")
        return self._of_number(found)

    def _last(self, text: str) -> tuple[str, int]:
        last = None
        try:
            for last in self._compiled.finditer(text, timeout=SEARCH_S):  # noqa: B007 (the last one counts)
                pass
        except TimeoutError as error:
            raise NoVerdict(f"took the pattern more than {SEARCH_S:g} s") from error
        group = 1 if self._compiled.groups else 0
        if last is None or last[group] is None:
            raise NoVerdict(f"has no match of the pattern: {_end_of(text)}")
        return last[group].strip(), last.end(group)

    def _of_word(self, found: str) -> float:
        grades = {word.casefold(): grade for word, grade in (self.words or {}).items()}
        if found.casefold() not in grades:
            raise NoVerdict(f"has the verdict {found!r:.60}, which is none of {', '.join(grades)}")
        return float(grades[found.casefold()])

    def _of_number(self, found: str) -> float:
        try:
            number = float(found)
        except ValueError as error:
            raise NoVerdict(f"has the verdict {found!r:.60}, which is no number") from error
        low, high = self.scale or (-math.inf, math.inf)
        if not (math.isfinite(number) and low <= number <= high):
            raise NoVerdict(f"has the verdict {found!r:.60}, which is outside of the scale from {low:g} to {high:g}")
        return number if self.scale is None else (number - low) / (high - low)


def _end_of(text: str) -> str:
    return repr(" ".join(text.split())[-120:]) if text.strip() else "it is empty"
