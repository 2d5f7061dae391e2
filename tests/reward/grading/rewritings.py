r"""Ways to write an answer otherwise, and to get it slightly wrong, for answers of MATH: LaTeX that stands in `\boxed`."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

Rewrite = Callable[[str], str | None]  # None where an answer has nothing to rewrite

_INTEGER = re.compile(r"-?\d+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_POINT = re.compile(r"(\\left)?\( *([^,()]+), *([^,()]+?) *(\\right)?\)")
_CHOICE = re.compile(r"\\text\{\(?([A-E])\)?\}|[A-E]")


def _in_box(answer: str | None) -> str | None:
    return None if answer is None else rf"So we get $\boxed{{{answer}}}$."


def _changed(answer: str, rewritten: str) -> str | None:
    return None if rewritten == answer else rewritten


def _fraction(answer: str) -> Fraction | None:
    found = _FRACTION.fullmatch(answer)
    return Fraction(int(found[1] + found[2]), int(found[3])) if found else None


# -- the same ----------------------------------------------------------------------------------------------------------


def in_a_sentence(answer: str) -> str | None:
    r"""With an attempt before it that was taken back."""
    return rf"At first \boxed{{17 + z}}, but no: the final answer is \[\boxed{{ {answer} }}.\]"


def in_tags(answer: str) -> str | None:
    return f"<think>Maybe 12?</think>\n<answer>${answer}$</answer>"


def styled(answer: str) -> str | None:
    """Other fractions and parentheses."""
    other = re.sub(r"\\[dt]?frac(?=\{)", r"\\dfrac", answer)
    if r"\left" not in answer:
        other = re.sub(r"(?<!\\text\{)\((?=[^()]*\)$)", r"\\left(", other)
        other = re.sub(r"\)$", r"\\right)", other) if r"\left(" in other else other
    return _in_box(_changed(answer, other))


def spaced(answer: str) -> str | None:
    return _in_box(_changed(answer, re.sub(r" *([+=]|(?<=[\w}]) *-) *", lambda found: f" {found[1].strip()} ", answer)))


def crowded(answer: str) -> str | None:
    """Without the spaces that LaTeX does not need, and with some that it does not show."""
    if "text" in answer or "mbox" in answer:
        return None
    return _in_box(_changed(answer, re.sub(r"(?<![a-zA-Z]) +| +(?![a-zA-Z ])", r"", answer.strip())))


def inline(answer: str) -> str | None:
    """A fraction with a slash, a whole number with a point."""
    found = _FRACTION.fullmatch(answer)
    if found:
        return _in_box(f"{found[1]}{found[2]}/{found[3]}")
    return _in_box(f"{answer}.0") if _INTEGER.fullmatch(answer) else None


def unreduced(answer: str) -> str | None:
    found = _FRACTION.fullmatch(answer)
    return _in_box(rf"{found[1]}\frac{{{3 * int(found[2])}}}{{{3 * int(found[3])}}}") if found else None


def as_decimal(answer: str) -> str | None:
    value = _fraction(answer)
    if value is None or 10**6 % value.denominator:
        return None
    return _in_box(str(Decimal(value.numerator) / value.denominator))


def by_thousands(answer: str) -> str | None:
    return _in_box(f"{int(answer):,}".replace(",", "{,}")) if re.fullmatch(r"-?\d{4,}", answer) else None


SAME: list[Rewrite] = [in_a_sentence, in_tags, styled, spaced, crowded, inline, unreduced, as_decimal, by_thousands]

# -- another -----------------------------------------------------------------------------------------------------------


def first_number_off(answer: str) -> str | None:
    return _in_box(_changed(answer, re.sub(r"\d(?!\d)", lambda found: str((int(found[0]) + 1) % 10), answer, count=1)))


def last_number_off(answer: str) -> str | None:
    digits = list(re.finditer(r"\d(?!\d)", answer))
    if not digits:
        return None
    at = digits[-1].start()
    return _in_box(answer[:at] + str((int(answer[at]) + 1) % 10) + answer[at + 1 :])


def other_sign(answer: str) -> str | None:
    if not re.match(r"-? *(\d|\\[dt]?frac|\\sqrt)", answer) or re.fullmatch(r"-?0", answer) or "," in answer:
        return None
    return _in_box(answer.lstrip("- ") if answer.startswith("-") else f"-{answer}")


def upside_down(answer: str) -> str | None:
    found = _FRACTION.fullmatch(answer)
    return _in_box(rf"{found[1]}\frac{{{found[3]}}}{{{found[2]}}}") if found and found[2] != found[3] else None


def a_digit_short(answer: str) -> str | None:
    return _in_box(answer[:-1]) if re.fullmatch(r"-?[1-9]\d+", answer) else None


def tenfold(answer: str) -> str | None:
    return _in_box(f"{answer}0") if re.fullmatch(r"-?[1-9]\d*", answer) else None


def turned_round(answer: str) -> str | None:
    found = _POINT.fullmatch(answer.strip())
    return _in_box(f"({found[3]}, {found[2]})") if found and found[2].strip() != found[3].strip() else None


def other_end(answer: str) -> str | None:
    """An interval with one end closed that was open, or the other way round."""
    if not re.search(r"[\[\]]", answer) or r"\cup" in answer:
        return None
    return _in_box(re.sub(r"[(\[]", lambda found: "[" if found[0] == "(" else "(", answer, count=1))


def next_choice(answer: str) -> str | None:
    found = _CHOICE.fullmatch(answer)
    letter = (found[1] or answer) if found else None
    return _in_box(rf"\text{{({chr(65 + (ord(letter) - 64) % 5)})}}") if letter else None


ANOTHER: list[Rewrite] = [
    first_number_off, last_number_off, other_sign, upside_down, a_digit_short, tenfold, turned_round, other_end, next_choice,
]  # fmt: skip
