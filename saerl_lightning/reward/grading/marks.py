r"""Finds the answer in a text: in boxes, in tags, after "the answer is", or as the last formula or number.

Pure string functions that take linear time, because they run in the trainer on arbitrary text of the policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from saerl_lightning.reward.grading.numbers import SCALES, UNITS

SENTENCE = 400  # largest number of characters read of a sentence
TAILS = (400, 3000)  # numbers of characters at the end of a text, searched first
_BRACES = re.compile(r"\\{1,2}f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_TAKEN_BACK = re.compile(
    r"\b(?:no|not|nope|wait|actually|instead|rather|but|oops|wrong|incorrect|mistake|correction|hmm|recheck|however|should"
    r"|so|thus|hence|therefore|then|which|because|since|if|from|becomes?|gives?|equals?)\b|[=?!]|\\(?:to|Right|implies|ne)",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[.!?](?=\s|$)|\n\s*\n")
_JOINT = re.compile(r"[\s$,;&.~*]|\\[()\[\],;:! ]|\\q?quad|\\text\s*\{|\}|\b(?:and|or)\b")
_STATEMENT = re.compile(
    r"\banswers?\b(?:[^.\n:=$\\<]|\.(?=\d)){0,60}?(?:\b(?:is|are)\b(?!\s+not\b)\s*:?|:|=)|####",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:[\s*:_>`\"']|\\boxed(?!\{)|(?:approximately|about|exactly|equal to|simply|just|therefore|given by)\b)*"
)
_SENTENCE = re.compile(r"[.!?](?=[\s*\"')]|$)|\n")
_ENVIRONMENT = re.compile(
    r"\$\$(?P<display>[^$]{1,2000})\$\$|\\\[(?P<bracket>(?:[^\\]|\\(?![\[\]])){1,2000})\\\]"
    r"|\\\((?P<paren>(?:[^\\]|\\(?![()])){1,1000})\\\)|(?<!\\)\$(?P<inline>(?:[^$\\\n]|\\.|\n(?!\s*\n)){1,600})(?<!\\)\$",
    re.DOTALL,
)
_LATEX_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+")
_LONG_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}")
_PROSE = re.compile(r"(?<![A-Za-z\\])(?!(?:sin|cos|tan|log|ln|sqrt|pi|mod|or)(?![A-Za-z]))[A-Za-z]{2,}")
_SHORT_WORD = re.compile(_PROSE.pattern.replace(r"(?<![A-Za-z\\])", r"(?<![A-Za-z0-9\\])"))
_OPERATOR = re.compile(r"[-+*/=^:<>]|\\[a-z]+")
_GLUED_UNIT = re.compile(r"[-+$]?[\d.,]*\d([A-Za-z]{2,})(?:\^\{?[23]\}?|[²³])?[.,;:!?)]*")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_LOOSE = re.compile(r"[-*+–•]|\W?[a-zA-Z]\W?")
_VALUE = re.compile(r"\d|\\[a-zA-Z]|[π∞√½⅓¼¾⅔]")
_CONNECTED = re.compile(r"\s*(?:[,;]|,?\s*\b(?:and|or)\b|&)\s*", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"[-+$\d.,/ ]+")
_NEXT_WORD = re.compile(
    r"\s*(?:(?P<power>square|sq\.?|cubic|cu\.?) )?(?P<name>\\?%|[A-Za-z]+)(?P<raised>\^\{?[23]\}?|[²³])?"
)


@dataclass(frozen=True)
class FoundAnswer:
    """The answer found in a text.

    Attributes:
        parts: Text of the answer. If several boxes are side by side, there are several, and the last one answers a
            question with a single answer.
        marked: Whether a box, tags or a sentence marks the answer.
    """

    parts: tuple[str, ...]
    marked: bool


def boxes(text: str) -> list[tuple[int, int, int]]:
    r"""Finds all closed `\boxed{...}` with nested braces: start of the box, and start and end of its content."""
    opened: list[tuple[int, int] | None] = []
    closed = []
    for token in _BRACES.finditer(text):
        if token[0] == "{":
            opened.append(None)
        elif token[0] == "}":
            box = opened.pop() if opened else None
            if box is not None:
                closed.append((*box, token.start()))
        elif token[0][-1] == "{" and len(token[0]) > 2:
            opened.append((token.start(), token.end()))
    return sorted(closed)


def boxed(text: str) -> str | None:
    r"""Extracts the content of the last closed `\boxed{...}`; None if there is none."""
    found = boxes(text)
    return text[found[-1][1] : found[-1][2]].strip() if found else None


def tagged(text: str) -> str | None:
    """Extracts the content of the last `<answer>...</answer>`; None if there is none."""
    head, close, _ = text.rpartition("</answer>")
    _, opening, inside = head.rpartition("<answer>")
    return inside.strip() if close and opening else None


def find_answer(text: str) -> FoundAnswer:
    r"""Finds the answer: the last box, tags or sentence that marks it, or else the last formula or number, or else the
    text.

    Reasoning up to the last `</think>` counts only if the text after it gives no answer.
    """
    thought, _, rest = text.rpartition("</think>")
    if thought and rest.strip():
        answer = _marked(rest) or _last_item(rest)
        if answer is not None:
            return answer
    return _marked(text) or _unmarked(text)


def _marked(text: str) -> FoundAnswer | None:
    """Finds the answer at the last mark: a box, tags, or a sentence with a value after the last box."""
    found = boxes(text) if "boxed" in text else []
    tags = text.rfind("</answer>")
    inside = tagged(text) if tags >= 0 else None
    if inside is not None and (not found or found[-1][2] < tags):
        within = _boxed_parts(inside, boxes(inside)) if "boxed" in inside else ()
        if within:
            return FoundAnswer(within, marked=True)
        answer = (_statement(inside) or _last_item(inside)) if _is_prose(inside) else None
        return answer or FoundAnswer((inside,), marked=True)
    after = _statement(text[found[-1][2] :], values_only=True) if found else _statement(text)
    if after is not None:
        return after
    return FoundAnswer(_boxed_parts(text, found), marked=True) if found else None


def _boxed_parts(text: str, found: list[tuple[int, int, int]]) -> tuple[str, ...]:
    """Returns the content of the last box, and of boxes before it that belong to the same answer."""
    last: list[tuple[int, int, int]] = []
    for box in reversed(found):
        if last and not (box[2] < last[-1][0] and _joined(text[box[2] + 1 : last[-1][0]])):
            break
        last.append(box)
    return tuple(dict.fromkeys(text[start:end].strip() for _, start, end in reversed(last)))


def _joined(gap: str) -> bool:
    """Whether the text between two boxes joins them to one answer."""
    if len(gap) > 120 or _TAKEN_BACK.search(re.sub(r"\\?[$(\[]?\s*\$?[a-zA-Z](?:_\{?\w+\}?)?\s*=", " ", gap)):
        return False
    return not _ENDS.search(gap) and (not _JOINT.sub("", gap) or bool(re.search(r"[,;&]|\b(?:and|or)\b", gap)))


def _statement(text: str, values_only: bool = False) -> FoundAnswer | None:
    """Finds the answer after the last "the answer is …" or "#### …"; None if there is none, or it is empty."""
    for found in reversed(list(_STATEMENT.finditer(text))):
        start = _LEAD.match(text, found.end()).end()  # type: ignore[union-attr]
        environment = _ENVIRONMENT.match(text, start)
        if environment is not None and not _is_currency(environment):
            clause = text[start : max(environment.end(), start + SENTENCE)]
            items = _items(clause)
            inside = (_inside(environment),) if not items or items[0][0] else (_joined_items(items, 0, clause),)
            return FoundAnswer(inside, marked=True)
        sentence = _SENTENCE.split(text[start : start + SENTENCE], maxsplit=1)[0].strip()
        items = _items(sentence)
        if items and not _is_prose(sentence):
            return FoundAnswer((sentence,), marked=True)
        if items and not items[0][0]:
            return FoundAnswer((_joined_items(items, 0, sentence),), marked=True)
        if values_only:
            continue
        if items:
            return FoundAnswer((_joined_items(items, len(items) - 1, sentence),), marked=True)
        if sentence:
            return FoundAnswer((sentence.strip("*\"'` "),), marked=True)
    return None


def _unmarked(text: str) -> FoundAnswer:
    whole = text.strip()
    if not _is_prose(whole) and "\n" not in whole:
        return FoundAnswer((whole,), marked=False)
    lone = [_inside(each) for each in _ENVIRONMENT.finditer(text[-SENTENCE:]) if not _is_currency(each)]
    return _last_item(text) or FoundAnswer((lone[-1] if lone else whole,), marked=False)


def _is_prose(text: str) -> bool:
    plain = _LATEX_TEXT.sub(" ", text)
    return len(text) > TAILS[-1] or "$" in text or bool(_LONG_WORD.search(plain) or _SHORT_WORD.search(plain))


def _last_item(text: str) -> FoundAnswer | None:
    for tail in _tails(text):
        items = _items(tail)
        if items:
            return FoundAnswer((_joined_items(items, len(items) - 1, tail),), marked=False)
    return None


def _tails(text: str) -> Iterator[str]:
    """Yields the end of a text from the start of a sentence, then a longer end, then the whole text."""
    for length in TAILS:
        if length < len(text):
            start = _SENTENCE.search(text, len(text) - length)
            yield text[start.end() if start and start.end() < len(text) else len(text) - length :]
    yield text


def _items(text: str) -> list[tuple[int, int, str]]:
    """Finds formulas and numbers in order: start, end and content of each."""
    text = _CALCULATOR.sub(lambda found: " " * len(found[0]), text)
    items, start = [], 0
    for environment in _ENVIRONMENT.finditer(text):
        if _is_currency(environment):
            continue
        items += _plain_items(text, start, environment.start())
        inside = _inside(environment)
        if _VALUE.search(inside) or re.search(r"[=<>{}]|[a-zA-Z].*[a-zA-Z]", inside):
            items.append(_with_unit(text, environment.start(), environment.end(), inside))
        start = environment.end()
    return items + _plain_items(text, start, len(text))


def _is_currency(environment: re.Match[str]) -> bool:
    r"""Whether the text between two dollar signs is prose, so that the signs are prices."""
    inline = environment["inline"]
    return inline is not None and len(_LONG_WORD.findall(_LATEX_TEXT.sub(" ", inline))) > 1


def _plain_items(text: str, start: int, end: int) -> list[tuple[int, int, str]]:
    """Finds runs of numbers, operators, single letters and commands outside of math environments."""
    items, run = [], []
    for chunk in re.finditer(r"\S+|\n", text[start:end]):
        mathy = chunk[0] != "\n" and not (len(chunk[0]) > 3 and chunk[0].isalpha()) and _is_mathy(chunk[0])
        if mathy:
            run.append(chunk)
        if run and (not mathy or chunk[0][-1] in ".:?!"):
            items += _run_items(text, start, run)
            run = []
    return items + (_run_items(text, start, run) if run else [])


def _is_mathy(chunk: str) -> bool:
    """Whether a chunk without spaces contains no words, except for functions and a number's unit."""
    if _PROSE.search(_LATEX_TEXT.sub(" ", chunk)) is None:
        return True
    found = _GLUED_UNIT.fullmatch(chunk)
    return found is not None and found[1] in UNITS


def _run_items(text: str, offset: int, run: list[re.Match[str]]) -> list[tuple[int, int, str]]:
    """Splits a run at commas and removes list marks and single letters at its ends; [] if it has no value."""
    first, last = 0, len(run)
    while first < last and _LOOSE.fullmatch(run[first][0]):
        first += 1
    while (
        first < last and _LOOSE.fullmatch(run[last - 1][0]) and not (last > 1 and _OPERATOR.fullmatch(run[last - 2][0]))
    ):
        last -= 1
    if first == last or (last - first < len(run) and re.match(r"\s*[=<>]", run[first][0])):
        first, last = 0, len(run)
    start = offset + run[first].start()
    whole = text[start : offset + run[last - 1].end()]
    items, place = [], 0
    for part in re.split(r"[,;](?=\s)", whole) if "(" not in whole else [whole]:
        inside = part.strip(" *\"'`!?:,").rstrip(".")
        if _VALUE.search(inside):
            items.append(_with_unit(text, start + place, start + place + len(part), inside))
        place += len(part) + 1
    return items


def _with_unit(text: str, start: int, end: int, inside: str) -> tuple[int, int, str]:
    """Adds a percent sign, a power of ten or a known unit that follows the item in words."""
    word = _NEXT_WORD.match(text, end)
    if word and text[end - 1 : end] not in ",.;:!?":
        name = word["name"].lower()
        if (
            "%" in name
            or name in ("percent", "percentage", "pct")
            or name in SCALES
            or (len(name) > 1 and name != "in" and word["name"] in UNITS)  # "in" is a preposition here, not the inch
        ):
            unit = (
                word[0].strip()
                if _PLAIN_NUMBER.fullmatch(inside) or "%" in name
                else rf"\text{{ {word['power'] or ''} {word['name']}}}{word['raised'] or ''}"
            )
            return start, word.end(), f"{inside} {unit}"
    return start, end, inside


def _joined_items(items: list[tuple[int, int, str]], place: int, text: str) -> str:
    """Joins the items around one that only commas, `and` and `or` separate, because they form one list."""
    first = last = place
    while first > 0 and _CONNECTED.fullmatch(text[items[first - 1][1] : items[first][0]]):
        first -= 1
    while last + 1 < len(items) and _CONNECTED.fullmatch(text[items[last][1] : items[last + 1][0]]):
        last += 1
    return ", ".join(each[2] for each in items[first : last + 1])


def _inside(environment: re.Match[str]) -> str:
    return next(group for group in environment.groups() if group is not None)
