r"""Reads exact values of numbers in many spellings: 1,234.50, \frac{3}{4}, 2 1/2, 4.5 \times 10^{33}, 50%, 18 dollars.

All functions expect an answer normalised by `spelling.tidied`. Expressions are read in `symbols`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 400  # digits: longer numbers are compared as text, so that none takes long
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+|\.(?!\w))?|\.\d+"
_PLAIN = rf"(?:{_UNSIGNED})"
_WHOLE = r"\d{1,3}(?:,\d{3})+|\d+"
_POWER = (
    r"(?: ?(?:\\times|\\cdot|\*|×|x) ?10 ?(?:\^|\*\*) ?"
    r"(?:\{ ?(?P<power>[+-]?\d{1,4}) ?\}|\(?(?P<bare>[+-]?\d{1,4})\)?)|[eE](?P<e>[+-]?\d{1,4}))"
)
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<money>[$£€¥₹]?) ?(?P<minus>-?)"
    rf"(?:(?P<ten>10 ?\^ ?\{{ ?(?P<tens>[+-]?\d{{1,4}}) ?\}}|10\^(?P<one>\d))"
    rf"|(?P<whole>{_WHOLE}) ?\\frac ?\{{ ?(?P<a>\d+) ?\}} ?\{{ ?(?P<b>\d+) ?\}}|(?P<whole2>\d+) (?P<c>\d+) ?/ ?(?P<d>\d+)"
    rf"|\\frac ?\{{ ?(?P<top>-?{_PLAIN}) ?\}} ?\{{ ?(?P<bottom>-?{_PLAIN}) ?\}}"
    rf"|\(?(?P<over>-?{_PLAIN})\)? ?/ ?\(?(?P<under>{_PLAIN})\)?"
    rf"|(?P<left>\d*\.\d*)\\overline ?\{{ ?(?P<again>\d+) ?\}}"
    rf"|(?P<plain>{_PLAIN})(?P<times>{_POWER})?)"
    r"(?P<after>.*)",
    re.DOTALL,
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PLAIN_WORDS = (
    "and or to not more less fewer than over out times plus minus if when for where is are mod by but the am pm"
)
_NOT_A_UNIT = frozenset(_PLAIN_WORDS.split())
_UNIT_NAMES = {
    "dollar": "$ dollar dollars usd bucks", "cent": "cent cents ¢", "pound sterling": "£", "euro": "€ euro euros",
    "rupee": "₹ rs rupee rupees",
    "metre": "m meter meters metre metres", "centimetre": "cm centimeter centimeters centimetre centimetres",
    "millimetre": "mm millimeter millimeters millimetres", "kilometre": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches", "foot": "ft foot feet", "yard": "yd yard yards", "mile": "mi mile miles",
    "gram": "g gram grams", "kilogram": "kg kilogram kilograms", "pound": "lb lbs pound pounds", "ounce": "oz ounce ounces",
    "second": "s sec secs second seconds", "minute": "min mins minute minutes", "hour": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr yrs year years",
    "litre": "L liter liters litre litres", "millilitre": "ml mL", "degree": "deg degree degrees", "mph": "mph",
    "radian": "rad radian radians",
}  # fmt: skip
UNITS = {word: unit for unit, words in _UNIT_NAMES.items() for word in words.split()}
_ONE_LETTER = set("mgshLKCFNJWV")
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SMALL += " seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_IN_WORDS = {word: value for value, word in enumerate(_SMALL.split())}
_IN_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
_IN_WORDS |= {
    f"{ten}-{one}": 10 * value + unit
    for value, ten in enumerate(_TENS.split(), start=2)
    for unit, one in enumerate(_SMALL.split()[1:10], start=1)
}
_PERCENT = re.compile(r"(?:%|\\text\{ ?(?:percent|percentage|pct|%) ?\}| ?percent(?:age)?\b| ?pct\b)")


@dataclass(frozen=True)
class Number:
    """A number, with its percent sign and unit.

    Attributes:
        value: Exact value; 50 for 50%.
        places: Number of decimals as written; None unless it was written as one decimal number.
        percent: Whether a percent sign or word followed.
        unit: Known unit with its power, such as "metre^2"; "" for none or unknown words.
    """

    value: Fraction
    places: int | None = None
    percent: bool = False
    unit: str = ""


def number(tidy: str) -> Number | None:
    """Reads one number with its currency, percent sign and unit; None for anything else."""
    if _DIGITS.fullmatch(tidy) and len(tidy) <= LONGEST:
        return Number(Fraction(tidy), len(tidy.partition(".")[2]))
    in_words = _IN_WORDS.get(re.sub(r"\\text ?\{([^{}]*)\}", r"\1", tidy).strip().lower()) if len(tidy) <= 30 else None
    if in_words is not None:
        return Number(Fraction(in_words), 0)
    found = _NUMBER.fullmatch(tidy) if len(tidy) <= LONGEST else None
    if found is None or (found["sign"] and found["minus"]):
        return None
    value = _value(found)
    unit = _unit(found["after"], glued=not found["after"].startswith(" ") and bool(found["after"]))
    if value is None or unit is None:
        return None
    scale, percent, name = unit
    places = len(found["plain"].partition(".")[2]) if found["plain"] and not found["times"] and scale == 0 else None
    sign = -1 if "-" in (found["sign"], found["minus"]) else 1
    return Number(sign * value * 10**scale, places, percent, name or UNITS.get(found["money"], ""))


def as_decimal(text: str) -> Fraction | None:
    """Reads digits with thousands separators, such as 1,234.5 or 1 234; None if there are none or too many."""
    digits = text.replace(",", "").replace(" ", "")
    return Fraction(digits.rstrip(".")) if 0 < len(digits) <= LONGEST else None


def agree(gold: Number, answer: Number) -> bool:
    """Whether two numbers are equal: exactly, as a percentage, or as a fraction and its decimals (four or more, rounded).

    A percentage equals its number (`50` and `50%`) and its share (`0.5` and `50%`). Two known units must be equal.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.percent == answer.percent:
        return gold.value == answer.value or rounds_to(gold, answer) or rounds_to(answer, gold)
    share = (gold if gold.percent else answer).value / 100
    return gold.value == answer.value or share == (answer if gold.percent else gold).value


def rounds_to(exact: Number, rounded: Number) -> bool:
    """Whether a number not written in decimals equals the other one after rounding."""
    return exact.places is None and decimals_of(exact.value, rounded)


def decimals_of(value: Fraction, rounded: Number) -> bool:
    """Whether decimals (at least four, and four significant digits) are a value rounded to the nearest."""
    places = rounded.places or 0
    digits = abs(rounded.value) * 10**places
    return places >= 4 and digits >= 1000 and abs(value * 10**places - rounded.value * 10**places) * 2 <= 1


def _value(found: re.Match[str]) -> Fraction | None:
    if found["ten"]:
        return _ten_to(found["tens"] or found["one"])
    if found["whole"] or found["whole2"]:
        whole, top, bottom = found["whole"] or found["whole2"], found["a"] or found["c"], found["b"] or found["d"]
        proper = int(bottom) > int(top) > 0
        return Fraction(whole.replace(",", "")) + Fraction(int(top), int(bottom)) if proper else None
    if found["top"] or found["over"]:
        top, bottom = as_decimal(found["top"] or found["over"]), as_decimal(found["bottom"] or found["under"])
        return top / bottom if top is not None and bottom else None
    if found["again"]:
        return _repeating(found["left"], found["again"])
    value, power = as_decimal(found["plain"]), found["power"] or found["bare"] or found["e"]
    scale = _ten_to(power) if power else Fraction(1)
    return None if value is None or scale is None else value * scale


def _ten_to(power: str) -> Fraction | None:
    return Fraction(10) ** int(power) if abs(int(power)) <= LONGEST else None


def _repeating(left: str, again: str) -> Fraction:
    whole, _, once = left.partition(".")
    tail = Fraction(int(again), 10 ** len(again) - 1) / 10 ** len(once)
    return Fraction(int((whole or "0") + once), 10 ** len(once)) + tail


def _unit(after: str, glued: bool) -> tuple[int, bool, str] | None:
    """Reads the text after the digits: power of ten, percent sign, and unit; None if it is no unit."""
    scale, after = 0, after.strip()
    percent = _PERCENT.match(after)
    after = after[percent.end() :].strip() if percent else after
    words = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", after).split()
    while words and words[0].lower() in SCALES:
        scale += SCALES[words.pop(0).lower()]
    if not words:
        return scale, bool(percent), ""
    if glued and not percent and not scale and not after.startswith(("\\text", "^{\\circ}", "£", "€")):
        glued_unit = re.fullmatch(r"([a-zA-Z]{2,}|m(?=\^))(\^\{[23]\})?", after)
        if glued_unit is None or glued_unit[1] not in UNITS:
            return None
    name = unit_name(words)
    return None if name is None else (scale, bool(percent), name)


def unit_name(words: list[str]) -> str | None:
    """Returns the known unit that words name, "" for other words, None for words that can't be a unit."""
    plain = [re.sub(r"\^\{?(?:-?\d|\\circ)\}?|[.,;()]", "", word) for word in words]
    if any(word.lower() in _NOT_A_UNIT for word in plain) or not all(
        re.fullmatch(r"[A-Za-z/$£€¥₹'°]*", word) for word in plain
    ):
        return None
    if any(len(word) == 1 and word.isalpha() and word not in _ONE_LETTER and word != "a" for word in plain):
        return None
    joined = " ".join(words)
    power = 2 if re.search(r"\bsq(?:uared?|\.)?\b", joined) else 3 if re.search(r"\bcu(?:b(?:ic|ed))?\b", joined) else 0
    raised = re.search(r"\^\{?([23])\}?", joined)
    power = int(raised[1]) if raised else power
    if "circ" in joined:
        return "degree" if not any(word in ("C", "F") for word in plain) else f"degree {plain[-1]}"
    rate = any(word == "per" or "/" in word for word in plain)
    known = [] if rate else [UNITS[word] for word in plain if word in UNITS]
    return (known[0] + (f"^{power}" if power else "")) if len(known) == 1 else ""
