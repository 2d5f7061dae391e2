r"""Finds the final answer of a text and grades it: by strings and exact numbers, and by symbolic comparison of
formulas.

It imports neither torch nor lightning, because grader processes import it. math-verify's own timeouts are off, because
they need SIGALRM; `workers.py` kills graders that take too long.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NoReturn

from saerl_lightning.reward.grading import symbols
from saerl_lightning.reward.grading.equality import Formulas, same, spelled
from saerl_lightning.reward.grading.marks import FoundAnswer, boxed, find_answer, tagged
from saerl_lightning.reward.grading.numbers import Number, agree, number
from saerl_lightning.reward.grading.spelling import compact, split_outside_brackets, tidied
from saerl_lightning.reward.grading.values import Named, Region, Several, Value, Words, plain_words, read

_ALONE = re.compile(r"\(?([A-J])\)?[.:]?")
_WITH_TEXT = re.compile(r"(?:(?:option|choice|answer) )?(?:\(([A-J])\)|([A-J])[.):])\s*(.+)", re.IGNORECASE | re.DOTALL)
_PICKED = re.compile(r"(?:option|choice|answer|graph|figure|statement)\s*(?:is|:)?\s*\(?([A-J])\)?", re.IGNORECASE)
_IN_TEXT = re.compile(
    r"\(([A-J])\)|\*\*\(?([A-J])\)?[.:]?\*\*|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)(?: is|:)?\s+\(?([A-J])\)?(?![\w'])"
)
_LEADING = re.compile(r"\(?([A-J])\)?(?:[,.;:]|\s+(?:because|since|as|so|is|which)\b)")
_ANOTHER = re.compile(r"\([A-J]\)|\b(?:and|or)\s+[A-J]\b|^\s*\(?[A-J]\)?(?![\w'])")


def choice(tidy: str) -> tuple[str, str] | None:
    """Reads a multiple-choice answer: its letter, and the text beside it; None if it is no single choice."""
    tidy = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", tidy).strip()
    alone = _ALONE.fullmatch(tidy)
    if alone is not None:
        return alone[1], ""
    picked = _PICKED.fullmatch(tidy)
    if picked is not None:
        return picked[1], ""
    found = _WITH_TEXT.fullmatch(tidy)
    letter = found and (found[1] or found[2])
    if not found or not letter or not letter.isupper() or _ANOTHER.search(found[3]):
        return None
    return letter, found[3].strip()


def chosen(text: str) -> str:
    """Returns the last letter that an unmarked text chooses, as `(B)`, in bold, or after "option"; "" if none."""
    letters = [next(group for group in found.groups() if group) for found in _IN_TEXT.finditer(text)]
    return letters[-1] if letters else ""


def leading_choice(tidy: str) -> str:
    """Returns the letter at the start of a sentence after "the answer is"; "" if none."""
    found = _LEADING.match(tidy)
    return found[1] if found and not _ANOTHER.search(tidy[found.end() :]) else ""


LONGEST = 4_000  # largest number of characters of an answer that are read
LONGEST_GOLD = 300  # characters: a longer correct answer is taken for a solution, whose answer is extracted
_YES_NO = ("yes", "no", "true", "false")
_ABOUT = frozenset({r"\approx"})  # either side of it counts as the answer: the exact value or its decimals
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+[$€]?")

prepare_symbolic = symbols.prepare


class Undecided(Exception):
    """Raised if strings and numbers are not enough to decide."""

    @staticmethod
    def equal(gold: str, answer: str) -> bool:
        """Returns True for equal strings.

        Raises:
            Undecided: for different strings.
        """
        if compact(gold) == compact(answer):
            return True
        raise Undecided

    @staticmethod
    def has_value(formula: str, number: Number) -> NoReturn:
        """Never decides whether a formula has a value.

        Raises:
            Undecided: always.
        """
        raise Undecided


def given_answer(text: str) -> str:
    r"""Returns a completion's answer: in the last `<answer>` tags, or else the last `\boxed`, or else the whole text."""
    answer = tagged(text)
    if answer is None:
        answer = boxed(text)
    return text.strip() if answer is None else answer


def last_answer(text: str) -> str:
    r"""Returns a text's answer in a normalised spelling, so that equal answers are equal strings; "" if there is none.

    The answer is read as it is for grading. Percent signs, units and names are left out; formulas are not simplified.
    """
    answer = find_answer(text)
    if not answer.marked and not re.search(r"\d|\\", "".join(answer.parts)) and len(text.split()) > 1:
        return ""
    return spelled(_value(_joined(answer)))


def quick_verdict(gold: str, text: str) -> float | None:
    """Grades a completion by strings and exact numbers, within microseconds; None if a formula must be compared."""
    if not text.strip():
        return 0.0
    if not _gold(gold):
        return None
    try:
        return float(_verdict(gold, text, Undecided))
    except Undecided:
        return None


def symbolic_verdict(gold: str, text: str) -> float:
    """Grades a completion, with formulas compared by math-verify. This may hang: run it in a process that can be killed.

    Raises:
        ValueError: if the correct answer is empty after normalisation, so that no answer can be judged.
    """
    if not _gold(gold):
        raise ValueError(f"can't read the gold answer {gold!r}: nothing is left of it")
    return float(_verdict(gold, text, symbols))


def _verdict(gold: str, text: str, by: Formulas) -> bool:
    wanted, answer = _gold(gold), find_answer(text)
    given = tidied(answer.parts[-1][:LONGEST])
    value = _gold_value(gold)
    listed = isinstance(value, Number) and ", " in given  # "35, 280" is a list, not 35,280
    if len(answer.parts) == 1 and compact(given) == compact(wanted) and not listed:
        return True
    if isinstance(value, Number):
        plain = number(given)
        if plain is not None:
            return agree(value, plain)
    letter = choice(wanted)
    if letter is not None:
        return _same_choice(letter, answer, text, by)
    if not given:
        return False
    if isinstance(value, Words) and value.text[:1].isalpha() and not answer.marked:
        return _ends_with(value, text)
    if isinstance(value.value if isinstance(value, Named) else value, Several | Region):
        given = tidied(_joined(answer)[:LONGEST])
    return _right(value, given, by)


# Cached, because all completions of a group have the same correct answer.
@lru_cache(maxsize=4096)
def _gold(gold: str) -> str:
    return tidied(_joined(find_answer(gold)) if "boxed" in gold or len(gold) > LONGEST_GOLD else gold)


@lru_cache(maxsize=4096)
def _gold_value(gold: str) -> Value:
    return read(_gold(gold))


def _joined(answer: FoundAnswer) -> str:
    return ", ".join(part.strip() for part in answer.parts)


def _value(answer: str) -> Value:
    return read(tidied(answer[:LONGEST]))


def _right(gold: Value, given: str, by: Formulas) -> bool:
    if isinstance(gold, Number) and gold.places and _DECIMAL_COMMA.fullmatch(compact(given)):
        given = given.replace(",", ".")  # a decimal comma, because the correct answer has decimals
    if isinstance(gold, Words) and gold.text in _YES_NO:
        return plain_words(given).text.partition(" ")[0] == gold.text
    sides, _ = split_outside_brackets(given, _ABOUT)
    return any(same(gold, read(side), by) for side in dict.fromkeys((given, sides[0], sides[-1])))


def _same_choice(gold: tuple[str, str], answer: FoundAnswer, text: str, by: Formulas) -> bool:
    """Whether the letter is chosen, or the text beside it given, if the correct answer has such a text."""
    given = tidied(answer.parts[-1][:LONGEST])
    picked = choice(given) if len(answer.parts) == 1 else None
    if picked is not None:
        return picked[0] == gold[0]
    letter = leading_choice(given) if answer.marked else chosen(text)
    if letter:
        return letter == gold[0]
    return bool(gold[1]) and _right(read(gold[1]), given, by)


def _ends_with(gold: Words, text: str) -> bool:
    """Whether a text without marks consists of these words, or its last sentence ends in them and contains no negation."""
    sentences = [plain_words(sentence).text for sentence in re.split(r"[.!?](?:\s|$)|\n", text)]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        return False
    last, count = sentences[-1].split(), len(gold.text.split())
    if len(sentences) == 1 and gold.text in _YES_NO and last[0] in _YES_NO:
        return last[0] == gold.text
    denied = any(word in ("not", "never", "neither", "nor", "or") or word.endswith("n't") for word in last[:-count])
    return " ".join(last[-count:]) == gold.text and not denied
