r"""Final answers in texts, and whether two answers are equal. Pure strings; math-verify only where strings don't settle it.

Imports neither torch nor lightning, because grader processes import it. Deliberately not here: deadlines (`workers.py`
kills a grader that hangs, so math-verify's own timeouts, which need SIGALRM, are off).
"""

from __future__ import annotations

import logging
import re
from decimal import Decimal

LETTERS = ("A", "B", "C", "D", "E")

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_PLAIN_NUMBER = re.compile(rf"([+-]?)\\?\$?([+-]?)({_NUMBER})")
_LAST_NUMBER = re.compile(rf"(?<![\w.)])-?(?:{_NUMBER})(?:/\d+)?")  # a minus after a word or ')' is a subtraction


def boxed(text: str) -> str | None:
    r"""Cuts out the content of the last closed `\boxed{...}`, whose braces may nest; None if there is none."""
    for box in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[box.end() :], re.DOTALL):  # an escaped brace is no brace
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[box.end() : box.end() + brace.start()].strip()
    return None


def tagged(text: str) -> str | None:
    """Cuts out the content of the last `<answer>...</answer>`; None if there is none."""
    head, close, _ = text.rpartition("</answer>")
    _, opening, inside = head.rpartition("<answer>")
    return inside.strip() if close and opening else None


def last_number(text: str) -> str | None:
    """Cuts out the last number, thousands separators and a plain fraction included; None if there is none."""
    numbers = _LAST_NUMBER.findall(text.replace("−", "-"))
    return numbers[-1] if numbers else None


def given_answer(text: str) -> str:
    r"""The answer a completion gives: inside the last `<answer>` tags, else the last `\boxed`, else the whole text."""
    answer = tagged(text)
    if answer is None:
        answer = boxed(text)
    return text.strip() if answer is None else answer


def last_answer(text: str) -> str:
    r"""The answer of a text in a canonical form, so that equal votes are equal strings; "" if it gives none.

    It is the last `\boxed`, else what stands in the last `<answer>` tags, else the last number.
    """
    answer = _marked(text)
    if answer is None:
        answer = last_number(text) or ""
    number = as_number(answer)
    return normalized(answer) if number is None else _plain(number)


def normalized(answer: str) -> str:
    r"""The answer without what never changes its meaning: spaces, `\left`, `\text{}`, `\dfrac`, dollars, a full stop."""
    answer = answer.replace("−", "-").replace("{,}", ",")
    answer = re.sub(r"\\(?:text|mbox|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", answer)
    answer = re.sub(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\[!,;: ]", "", answer)
    return re.sub(r"\s+", "", answer).strip("$").rstrip(".")


def as_number(answer: str) -> Decimal | None:
    r"""The exact value of a plain decimal number, as 1,234.50 or \$5 or -.5; None for anything else (percent too)."""
    found = _PLAIN_NUMBER.fullmatch(normalized(answer))
    if found is None or (found[1] and found[2]):
        return None
    return Decimal(found[1] + found[2] + found[3].replace(",", ""))


def quick_verdict(gold: str, text: str) -> float | None:
    """Grades a completion by strings and plain decimal numbers, in microseconds; None where that can't settle it."""
    number = as_number(gold)
    answer = _marked(text)
    if answer is None and number is not None:
        answer = last_number(text) or ""
    if answer is None:
        return None if text.strip() else 0.0
    if not normalized(answer):
        return 0.0
    if normalized(answer) == normalized(gold):
        return 1.0
    given = as_number(answer)
    return None if number is None or given is None else float(number == given)


def symbolic_verdict(gold: str, text: str) -> float:
    """Grades a completion with math-verify, the gold answer first. May hang: run it in a process that can be killed.

    Raises:
        ValueError: if math-verify can't read the gold answer, so that no answer can be called wrong.
    """
    from math_verify import verify

    letter = normalized(gold).strip("()")  # a lower-case e is Euler's number
    if letter in LETTERS:
        return float(letter.lower() in _letters(text))
    golds = _expressions(f"${gold.strip()}$") or _expressions(gold)
    if not golds:
        raise ValueError(f"math-verify can't read the gold answer {gold!r}")
    return float(verify(golds, _answers(text, number=as_number(gold) is not None), timeout_seconds=None))


def prepare_symbolic() -> None:
    """Imports math-verify before the first job, and silences its notice that its timeouts are off."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.ERROR)


def _marked(text: str) -> str | None:
    answer = boxed(text)
    return tagged(text) if answer is None else answer


def _plain(number: Decimal) -> str:
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits in ("", "-0", "-") else digits


def _letters(text: str) -> list[str]:
    """The choice a text makes, as math-verify's string extraction reads it once `(B)` and `\text{B}` are bare."""
    from math_verify import StringExtractionConfig, parse

    answer = _marked(text)
    words = re.sub(r"\\(?:text|mbox|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text if answer is None else answer)
    bare = re.sub(r"[($]+([A-E])[)$]+", r"\1", words)
    return [str(x) for x in parse(bare, [StringExtractionConfig(strings=LETTERS)], parsing_timeout=None)]  # type: ignore[arg-type]


def _answers(text: str, number: bool) -> list:
    """The expressions of a completion's answer; without a mark, its last number or what math-verify finds."""
    answer = _marked(text)
    if answer is None:
        return _expressions((last_number(text) or "") if number else text)
    in_math = [f"${answer}$", answer]
    first, second = reversed(in_math) if re.search(r"(?<!\\)\$", answer) else in_math
    return _expressions(first) or _expressions(second)


def _expressions(text: str) -> list:
    from math_verify import parse

    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]
