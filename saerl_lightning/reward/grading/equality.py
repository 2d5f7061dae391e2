r"""Decides whether two answers are equal: numbers, lists, intervals, words and numerals; formulas by `symbols`.

Order matters inside brackets, but not in bare lists and sets. Closed and open ends differ, and so do different names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Protocol

from saerl_lightning.reward.grading.numbers import Number, agree
from saerl_lightning.reward.grading.spelling import compact
from saerl_lightning.reward.grading.values import (
    Formula,
    Named,
    Numeral,
    Region,
    Residue,
    Several,
    Value,
    Words,
    plain_words,
)


class Formulas(Protocol):
    """Compares formulas: `symbols`, or `Undecided` if that would take too long."""

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two formulas are equal."""
        ...

    def has_value(self, formula: str, number: Number) -> bool:
        """Whether the value of a formula equals a number."""
        ...


_RELATION = re.compile(r"[=<>]|\\[gl]e(?![a-zA-Z])")
MOST = 60  # largest number of values that are matched in any order; longer lists must be in order


def same(gold: Value, answer: Value, by: Formulas) -> bool:
    """Whether an answer is equal to the correct answer."""
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _same_named(gold, answer, by)
    if isinstance(gold, Number) and isinstance(answer, Number):
        return agree(gold, answer)
    if isinstance(gold, Numeral) or isinstance(answer, Numeral):
        return gold == answer or _same_digits(gold, answer)
    if isinstance(gold, Residue) or isinstance(answer, Residue):
        return _same_residue(gold, answer, by)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _same_words(_plain_text(gold), _plain_text(answer))
    if isinstance(gold, Region) or isinstance(answer, Region):
        return _same_region(gold, answer, by)
    if isinstance(gold, Several) and isinstance(answer, Several):
        return _same_several(gold, answer, by)
    return _same_formula(gold, answer, by)


def spelled(value: Value) -> str:
    """Writes a value in a normalised spelling. Equal answers give equal strings, except for formulas to be simplified."""
    if isinstance(value, Number):
        return _fraction(value.value)
    if isinstance(value, Several):
        names = {each.name for each in value.values if isinstance(each, Named)}
        inside = [
            f"{each.name}={spelled(each)}" if isinstance(each, Named) and len(names) > 1 else spelled(each)
            for each in value.values
        ]
        inside = inside if value.opening in ("(", "[") else sorted(inside)
        opening, closing = ("", "") if value.opening == r"\{" else (value.opening, value.closing)
        return f"{opening}{', '.join(inside)}{closing}"
    if isinstance(value, Region):
        return r" \cup ".join(sorted(spelled(each) for each in value.pieces))
    if isinstance(value, Named):
        return spelled(value.value)
    if isinstance(value, Residue):
        return rf"{spelled(value.value)} \pmod{{{value.modulus}}}"
    if isinstance(value, Numeral):
        return f"{value.digits}_{{{value.base}}}"
    return value.text if isinstance(value, Words) else value.latex


def _fraction(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    return f"{sign}{top}" if bottom == 1 else rf"{sign}\frac{{{top}}}{{{bottom}}}"


def _same_named(gold: Value, answer: Value, by: Formulas) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if _bare_name(gold.name) == _bare_name(answer.name):
            return same(gold.value, answer.value, by)
        return by.equal(gold.latex, answer.latex)
    if isinstance(gold, Named):
        if isinstance(answer, Formula) and _RELATION.search(answer.latex):
            return by.equal(gold.latex, answer.latex)
        return same(gold.value, answer, by)
    if isinstance(gold, Formula) and _RELATION.search(gold.latex):
        return by.equal(gold.latex, answer.latex)  # type: ignore[union-attr]
    return same(gold, answer.value, by)  # type: ignore[union-attr]


def _bare_name(name: str) -> str:
    return re.sub(r"\([a-z,]*\)$|[{} ]", "", name)


def _same_digits(gold: Value, answer: Value) -> bool:
    """Whether the digits are equal, if the answer leaves out the base (which the question names)."""
    if not (isinstance(gold, Numeral) and isinstance(answer, Number)):
        return False
    return answer.places == 0 and str(answer.value) == gold.digits  # 1101_{10} states a base, and has no places


def _same_residue(gold: Value, answer: Value, by: Formulas) -> bool:
    """Whether two values are equal modulo the same number, or equal, if one of them states no modulus."""
    if not (isinstance(gold, Residue) and isinstance(answer, Residue)):
        bare = [each.value if isinstance(each, Residue) else each for each in (gold, answer)]
        return same(bare[0], bare[1], by)
    if gold.modulus != answer.modulus:
        return False
    if (
        isinstance(gold.value, Number)
        and isinstance(answer.value, Number)
        and re.fullmatch("[1-9][0-9]*", gold.modulus)
    ):
        return (gold.value.value - answer.value.value) % int(gold.modulus) == 0
    return same(gold.value, answer.value, by)


def _same_words(gold: str, answer: str) -> bool:
    """Whether two texts are equal, except for plurals and a missing a.m. or p.m."""
    gold, answer = (re.sub(r"(\w{3})s\b", r"\1", text) for text in (gold, answer))
    times = {gold, answer} if ":" in gold and ":" in answer else set()
    return gold == answer != "" or {time.split()[0] for time in times} in ({gold}, {answer})


def _plain_text(value: Value) -> str:
    if isinstance(value, Words):
        return value.text
    return plain_words(value.latex).text if isinstance(value, Formula) and "\\" not in value.latex else ""


def _same_several(gold: Several, answer: Several, by: Formulas) -> bool:
    answer = _without_repeats(answer) if len(answer.values) > len(gold.values) else answer
    if len(gold.values) != len(answer.values):
        return False
    kinds = gold.opening + gold.closing, answer.opening + answer.closing
    alike = partial(same, by=by)
    loose = ("", r"\{\}")
    if kinds[0] in loose and kinds[1] in loose:
        return _matched(gold.values, answer.values, alike)
    if r"\{\}" in kinds:
        return False
    if "" in kinds:
        bracket = kinds[0] or kinds[1]
        if bracket == "[]":
            return (len(gold.values) > 2 or kinds[0] == "") and _matched(gold.values, answer.values, alike)
        return bracket == "()" and all(map(alike, gold.values, answer.values))
    return _brackets(gold) == _brackets(answer) and all(map(alike, gold.values, answer.values))


def _without_repeats(answer: Several) -> Several:
    """Removes repeated values from a set or bare list."""
    if answer.opening not in ("", r"\{"):
        return answer
    return replace(answer, values=tuple({spelled(value): value for value in answer.values}.values()))


def _brackets(value: Several) -> tuple[str, str]:
    """Returns the two brackets, always round at an infinite end."""
    ends = value.values[0], value.values[-1]
    opening = "(" if _is_infinite(ends[0]) else value.opening
    return opening, ")" if _is_infinite(ends[1]) else value.closing


def _is_infinite(value: Value) -> bool:
    return isinstance(value, Formula) and compact(value.latex).lstrip("+-") == r"\infty"


def _matched(golds: Sequence[Value], answers: Sequence[Value], alike: Callable[[Value, Value], bool]) -> bool:
    """Whether the values can be paired one to one, in any order."""
    if len(golds) > MOST:
        return all(map(alike, golds, answers))
    unmatched = list(answers)
    for gold in golds:
        match = next(
            (i for i, answer in enumerate(unmatched) if spelled(gold) == spelled(answer) and alike(gold, answer)), None
        )
        if match is None:
            match = next((i for i, answer in enumerate(unmatched) if alike(gold, answer)), None)
        if match is None:
            return False
        unmatched.pop(match)
    return not unmatched


def _same_region(gold: Value, answer: Value, by: Formulas) -> bool:
    first, second = _pieces(gold), _pieces(answer)
    if first and second and len(first) == len(second) and _matched(first, second, partial(same, by=by)):
        return True
    latex = [value.latex for value in (gold, answer) if isinstance(value, Region | Several | Formula)]
    return len(latex) == 2 and all(latex) and by.equal(*latex)


def _pieces(value: Value) -> tuple[Value, ...] | None:
    if isinstance(value, Region):
        return value.pieces
    return (value,) if isinstance(value, Several) and value.opening else None


def _same_formula(gold: Value, answer: Value, by: Formulas) -> bool:
    units = {each.unit for each in (gold, answer) if isinstance(each, Formula | Number) and each.unit}
    if len(units) > 1:
        return False
    if isinstance(gold, Number) and isinstance(answer, Formula):
        return by.has_value(answer.latex, gold)
    if isinstance(gold, Formula) and isinstance(answer, Number):
        return by.has_value(gold.latex, answer)
    if isinstance(gold, Formula) and isinstance(answer, Formula):
        return by.equal(gold.latex, answer.latex)
    formula, several = (gold, answer) if isinstance(gold, Formula) else (answer, gold)
    if isinstance(formula, Formula) and isinstance(several, Several):
        return by.equal(*(value.latex for value in (gold, answer)))  # type: ignore[union-attr]
    return False
