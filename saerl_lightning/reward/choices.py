r"""Multiple choice: the letter that an answer is, or picks: `(B)`, `B) 12`, `\textbf{(B)}\ 12`, option B."""

from __future__ import annotations

import re

_ALONE = re.compile(r"\(?([A-J])\)?[.:]?")
_WITH_TEXT = re.compile(r"(?:(?:option|choice|answer) )?(?:\(([A-J])\)|([A-J])[.):])\s*(.+)", re.IGNORECASE | re.DOTALL)
_PICKED = re.compile(r"(?:option|choice|answer|graph|figure|statement)\s*(?:is|:)?\s*\(?([A-J])\)?", re.IGNORECASE)
_IN_TEXT = re.compile(
    r"\(([A-J])\)|\*\*\(?([A-J])\)?[.:]?\*\*|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)(?: is|:)?\s+\(?([A-J])\)?(?![\w'])"
)
_LEADING = re.compile(r"\(?([A-J])\)?(?:[,.;:]|\s+(?:because|since|as|so|is|which)\b)")
_ANOTHER = re.compile(r"\([A-J]\)|\b(?:and|or)\s+[A-J]\b|^\s*\(?[A-J]\)?(?![\w'])")


def choice(tidy: str) -> tuple[str, str] | None:
    """The letter that a tidied answer is, and the text that stands with it; None if it is no choice, or two."""
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
    """The letter that a text without marks picks last, as `(B)`, in bold, or after "option"; "" if none."""
    letters = [next(group for group in found.groups() if group) for found in _IN_TEXT.finditer(text)]
    return letters[-1] if letters else ""


def leading_choice(tidy: str) -> str:
    """The letter that a sentence after "the answer is" begins with; "" if none."""
    found = _LEADING.match(tidy)
    return found[1] if found and not _ANOTHER.search(tidy[found.end() :]) else ""
