"""How an answer is put together: brackets, and what stands between separators outside of them. Linear in its length."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"\\begin\{\w+\}|\\end\{\w+\}|\\[{}]|\\langle(?![a-zA-Z])|\\rangle(?![a-zA-Z])|\d{1,3}(?:,\d{3})+(?!\d)"
    r"|,? ?\\text\{ ?(?P<text>and|or) ?\}|,? ?\b(?<!\\)(?P<word>and|or)\b"
    r"|\\[a-zA-Z]+|\\.|[{}()\[\],;&]|<=|[<>=]|\d+|[a-zA-Z]+|.",
    re.DOTALL,
)
_ROUND_TOKEN = re.compile(_TOKEN.pattern.replace(r"(?:,\d{3})+", r"(?:,0\d\d)+"), re.DOTALL)
_OPEN = {"(", "[", "{", "\\{", "\\langle"}
_CLOSE = {")", "]", "}", "\\}", "\\rangle"}


def parts(tidy: str, separators: frozenset[str], thousands: bool = True) -> tuple[list[str], list[str]]:
    r"""Cuts at separators that stand outside of every bracket.

    Args:
        tidy: a tidied answer.
        thousands: whether a comma before three digits is one of thousands; else only before a zero and two digits.
        separators: as `,`, `;`, `and`, `or` (also in `\text{}`), or a command such as `\cup`.

    Returns:
        The parts, and the separators between them. A comma between thousands separates nothing.
    """
    found, between, start, depth = [], [], 0, 0
    for token in (_TOKEN if thousands else _ROUND_TOKEN).finditer(tidy):
        name = token["text"] or token["word"] or token[0]
        if name in _OPEN or name.startswith("\\begin"):
            depth += 1
        elif name in _CLOSE or name.startswith("\\end"):
            depth -= 1
        elif depth == 0 and name in separators:
            found.append(tidy[start : token.start()].strip())
            between.append(name)
            start = token.end()
    return [*found, tidy[start:].strip()], between


def bracketed(tidy: str) -> tuple[str, str, str] | None:
    r"""The opening bracket, the inside and the closing bracket, where one pair stands around all; None otherwise.

    The two need not be of one kind: `[0, 1)`.
    """
    opening = re.match(r"\\\{|\\langle(?![a-zA-Z])|[(\[]", tidy)
    if opening is None:
        return None
    depth = 0
    for bracket in re.finditer(r"\\[{}]|\\[lr]angle(?![a-zA-Z])|\\.|[{}()\[\]]", tidy):
        depth += (bracket[0] in _OPEN) - (bracket[0] in _CLOSE)
        if depth == 0 and bracket[0] in _CLOSE:
            whole = bracket.end() == len(tidy)
            return (opening[0], tidy[opening.end() : bracket.start()].strip(), bracket[0]) if whole else None
    return None
