r"""Reads the value of an answer: a number, a formula, words, several values, an interval, or a named value.

`equality` compares values, and `symbols` evaluates formulas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from saerl_lightning.reward.grading.numbers import UNITS, Number, number, unit_name
from saerl_lightning.reward.grading.spelling import bracketed, compact, split_outside_brackets, unwrapped

DEEPEST = 8  # largest depth of nested brackets; deeper ones are compared as text
_LISTED = frozenset({",", ";", "and", "or"})
_RELATIONS = frozenset({"<", ">", "=", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\equiv"})
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_MODULUS = re.compile(r"\(?\s*\\(?:pmod|bmod|mod)\s*(?:\{([^{}]*)\}|(\w+))\)?|\(\\text\{mod ?\} ?(\w+)\)|\(mod (\w+)\)")
_NUMERAL = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?_\{(?:\\text\{)?(\d+|two|three|four|five|six|seven|eight|nine|ten|sixteen)\}?\}"
)
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_NAME = re.compile(
    r"\\?[a-zA-Z]+'*(?:_\{?[\w,]+\}?)?(?:\^\{-1\})?(?:\([a-zA-Z0-9,]+\))?|\|\\?[a-zA-Z]+\||\\text\{[^{}]*\}|\\angle ?[A-Z]+"
    r"|\([a-zA-Z](?:,[a-zA-Z](?:_\{\w\})?)*\)|\\(?:overline|vec|angle|triangle) ?\{?[a-zA-Z]+\}?"
    r"|\\frac\{[A-Za-z_{}0-9]+\}\{[A-Za-z_{}0-9]+\}|[A-Z][A-Za-z_{}0-9]*(?:[:/][A-Z][A-Za-z_{}0-9]*)+|m ?\\angle ?[A-Z]+"
)
_CLOCK = re.compile(r"\d+(?: ?: ?\d+)+(.*)")
_MEASURED = re.compile(
    r"(?P<formula>.*[^\s,]) ?\\text ?\{ ?(?P<words>[a-zA-Z][a-zA-Z /]*) ?\}(?P<power>(?:\^\{?[23]\}?)?)"
    r"|(?P<bare_formula>.*[^\s,]) (?P<bare>[a-zA-Z]{2,})(?P<bare_power>(?:\^\{?[23]\}?)?)"
)
_WORDY = re.compile(r"(?:\\text\{[^{}]*\}|[A-Za-z'’ ,.!?-])+")
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc log ln exp sqrt pi max min gcd lcm arcsin arccos arctan sinh cosh tanh det mod inf"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


@dataclass(frozen=True)
class Formula:
    """A mathematical expression, equation or set for the symbolic parser. `unit` is a known unit, or ""."""

    latex: str
    unit: str = ""


@dataclass(frozen=True)
class Words:
    """Plain language in lower case, with single spaces, without articles and punctuation."""

    text: str


@dataclass(frozen=True)
class Numeral:
    """Digits in a base other than ten."""

    digits: str
    base: str


@dataclass(frozen=True)
class Residue:
    """A value modulo a number."""

    value: Value
    modulus: str


@dataclass(frozen=True)
class Named:
    """A value with a name, such as x = 5 or x in [0, 1]. `latex` is the whole text."""

    name: str
    value: Value
    latex: str


@dataclass(frozen=True)
class Several:
    """Values in brackets `(`, `[`, `{`, `<`, or "" for a bare list. The order of bare lists and sets does not matter."""

    values: tuple[Value, ...]
    opening: str = ""
    closing: str = ""
    latex: str = ""


@dataclass(frozen=True)
class Region:
    """A union of intervals and sets."""

    pieces: tuple[Value, ...]
    latex: str = ""


Value = Number | Formula | Words | Numeral | Residue | Named | Several | Region


def read(tidy: str, depth: int = 0) -> Value:
    """Reads a normalised answer."""
    tidy = unwrapped(tidy)
    plain = number(tidy)
    if plain is not None:
        return plain
    if depth > DEEPEST:
        return Formula(compact(tidy))
    for attempt in (_numeral, _clock, _residue, _listed, _relation, _union, _inside):
        value = attempt(tidy, depth + 1)
        if value is not None:
            return value
    return _formula_or_words(tidy)


def plain_words(text: str) -> Words:
    """Normalises plain language: lower case, without articles and punctuation."""
    text = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"[^\w' ]", " ", text.casefold().replace("’", "'").replace("\\", " "))
    return Words(" ".join(word for word in text.split() if word not in ("the", "a", "an")))


def _numeral(tidy: str, depth: int) -> Value | None:
    found = _NUMERAL.fullmatch(compact(tidy))
    if found is None:
        return None
    base = _BASES.get(found[2], found[2])
    if base == "10" and found[1].isdigit():
        return Number(Fraction(found[1]))
    fits = base.isdigit() and all(int(digit, 16) < int(base) for digit in found[1])
    return Numeral(found[1].lstrip("0").upper() or "0", base) if fits else None


def _clock(tidy: str, depth: int) -> Value | None:
    """Reads a ratio or a time, which is compared digit by digit, because 12:00 is not a quotient."""
    found = _CLOCK.fullmatch(tidy)
    if found is None or not _WORDY.fullmatch(found[1] or " "):
        return None
    digits = ":".join(str(int(each)) for each in re.findall(r"\d+", tidy)[:9])
    return Words(f"{digits} {''.join(plain_words(found[1]).text.split())}".strip())


def _residue(tidy: str, depth: int) -> Value | None:
    found = None
    for found in _MODULUS.finditer(tidy):  # noqa: B007 (the last one)
        pass
    if found is None or tidy[found.end() :].strip():
        return None
    modulus = next(group for group in found.groups() if group is not None)
    values, _ = split_outside_brackets(tidy[: found.start()].rstrip(" ("), frozenset({r"\equiv", "="}))
    return Residue(read(values[-1], depth), compact(modulus))


def _listed(tidy: str, depth: int) -> Value | None:
    found, between = split_outside_brackets(tidy, frozenset({";"}))
    if not between or not all(split_outside_brackets(part, frozenset({","}))[1] for part in found):
        found, between = split_outside_brackets(tidy, _LISTED)
    if not between:
        return None
    values = [value for part in found if part for value in _both_signs(part, depth)]
    if len(values) > 1 and "or" in between and all(isinstance(value, Region) for value in _regions(values)):
        names = {value.name for value in values if isinstance(value, Named)}
        if len(names) == 1:
            pieces = tuple(piece for region in _regions(values) for piece in region.pieces)  # type: ignore[union-attr]
            return Named(names.pop(), Region(pieces, tidy), tidy)
    if len(values) > 1:
        return Several(tuple(values), latex=tidy)
    return values[0] if values else None


def _regions(values: list[Value]) -> list[Value]:
    return [value.value if isinstance(value, Named) else value for value in values]


def _both_signs(part: str, depth: int) -> list[Value]:
    r"""Returns the two values of one `\pm`; without or with several of them, the value itself."""
    if len(re.findall(r"\\pm(?![a-zA-Z])", part)) != 1:
        return [read(part, depth)]
    signs = [("+", "-"), ("-", "+")]
    return [
        read(re.sub(r"^\+ ?", "", part.replace(r"\pm", plus).replace(r"\mp", minus)), depth) for plus, minus in signs
    ]


def _relation(tidy: str, depth: int) -> Value | None:
    sides, between = split_outside_brackets(tidy, _RELATIONS)
    if not between:
        return _both_or_none(tidy, depth)
    while len(between) > 1 and between[-1] == r"\approx":  # x = 1/3 ≈ 0.33 says 1/3
        sides.pop()
        between.pop()
    if set(between) <= {"=", r"\approx"}:
        return _assigned(tidy, sides, depth)
    if between == [r"\in"] and _NAME.fullmatch(compact(sides[0])):
        return Named(compact(sides[0]), read(sides[1], depth), tidy)
    return _inequality(tidy, sides, between, depth)


def _both_or_none(tidy: str, depth: int) -> Value | None:
    both = _both_signs(tidy, depth) if r"\pm" in tidy and bracketed(tidy) is None and r"\cup" not in tidy else []
    return Several(tuple(both), latex=tidy) if len(both) > 1 else None


def _assigned(tidy: str, sides: list[str], depth: int) -> Value:
    r"""Reads `x = 2 + 3 = 5` as 5 named x, and `2 + 3 = 5` as 5. Other equations stay formulas."""
    first = compact(sides[0])
    value = sides[-1]
    if _NAME.fullmatch(first):
        return Named(first, read(value, depth), tidy)
    last = read(value, depth)
    numbers = isinstance(last, Number) and not re.search(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])", first)
    if numbers or (len(sides) > 2 and isinstance(last, Number)):
        return last
    return Formula(compact(tidy))


def _inequality(tidy: str, sides: list[str], between: list[str], depth: int) -> Value:
    """Reads `2 < x < 5`, `x >= 5` and `x != 5` as regions of x. Anything else stays a formula."""
    infinite = [Formula(r"-\infty"), Formula(r"\infty")]
    if len(sides) == 2 and not _is_name(sides[0]) and _is_name(sides[1]):
        sides, between = sides[::-1], [_FLIPPED.get(between[0], between[0])]
    if len(sides) == 2 and _is_name(sides[0]):
        name, bound, sign = compact(sides[0]), read(sides[1], depth), between[0]
        if sign == r"\ne":
            pieces = (Several((infinite[0], bound), "(", ")"), Several((bound, infinite[1]), "(", ")"))
            return Named(name, Region(pieces, tidy), tidy)
        if sign in (">", r"\ge"):
            return Named(name, Region((Several((bound, infinite[1]), "[" if sign != ">" else "(", ")"),), tidy), tidy)
        if sign in ("<", r"\le"):
            return Named(name, Region((Several((infinite[0], bound), "(", "]" if sign != "<" else ")"),), tidy), tidy)
    if len(sides) == 3 and _is_name(sides[1]) and len({sign in ("<", r"\le") for sign in between}) == 1:
        low, high, signs = sides[0], sides[2], between
        if between[0] in (">", r"\ge"):
            low, high, signs = high, low, [_FLIPPED[sign] for sign in reversed(between)]
        if set(signs) <= {"<", r"\le"}:
            opening, closing = "[" if signs[0] != "<" else "(", "]" if signs[1] != "<" else ")"
            piece = Several((read(low, depth), read(high, depth)), opening, closing)
            return Named(compact(sides[1]), Region((piece,), tidy), tidy)
    return Formula(compact(tidy))


def _is_name(side: str) -> bool:
    return (
        _NAME.fullmatch(compact(side)) is not None
        and not side.startswith("|")
        and compact(side) not in (r"\infty", r"\pi", "e")
    )


def _union(tidy: str, depth: int) -> Value | None:
    found, between = split_outside_brackets(tidy, frozenset({r"\cup"}))
    if between:
        return Region(tuple(read(part, depth) for part in found), tidy)
    if compact(tidy) in (r"\mathbb{R}", r"\R"):
        return Region((Several((Formula(r"-\infty"), Formula(r"\infty")), "(", ")"),), tidy)
    return None


def _inside(tidy: str, depth: int) -> Value | None:
    found = bracketed(tidy)
    if found is None:
        return None
    opening, inside, closing = found
    listed, between = split_outside_brackets(inside, frozenset({",", ";"}), thousands=False)
    if opening == "(" and closing == ")" and not between:
        return read(inside, depth)
    if opening == "[" and closing == "]" and not between:
        return read(inside, depth) if number(inside) else None
    if opening == r"\{" and re.search(r"(?<!\\)[:|]|\\mid|\\dots", inside):
        return None
    values = [read(part, depth) for part in listed if part]
    if opening == r"\{":
        values = [value for part in listed if part for value in _both_signs(part, depth)]
    return Several(tuple(values), opening.replace(r"\langle", "("), closing.replace(r"\rangle", ")"), tidy)


def _formula_or_words(tidy: str) -> Value:
    measured = _measured(tidy)
    if measured.unit:
        return measured
    names = re.findall(r"(?<!\\)[A-Za-z]{2,}", re.sub(r"\\(?:begin|end)\{\w+\}|_\{\w+\}", "", tidy))
    wordy = any(len(name) > 3 and name.lower() not in _FUNCTIONS for name in names)
    told = r"\text{" in tidy and _WORDY.fullmatch(tidy)
    known = tidy.strip(" .!").casefold() in ("yes", "no", "odd", "even", "true", "false", "none", "dne")
    if (
        told
        or known
        or (wordy and _WORDY.fullmatch(tidy))
        or (" " in tidy and wordy and "\\frac" not in tidy and "=" not in tidy and not re.search(r"\d", tidy))
    ):
        return plain_words(tidy)
    return measured


def _measured(tidy: str) -> Formula:
    r"""Separates the unit at the end of a formula, as in `2\sqrt{3} \text{ cm}`."""
    found = _MEASURED.fullmatch(tidy)
    if found and found["words"]:
        name = unit_name((found["words"] + found["power"]).split())
        return Formula(compact(tidy)) if name is None else Formula(compact(found["formula"]), name)
    if found and found["bare"] in UNITS:
        return Formula(compact(found["bare_formula"]), unit_name([found["bare"] + found["bare_power"]]) or "")
    return Formula(compact(tidy))
