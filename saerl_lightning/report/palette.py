"""Colours and marks that colour-blind readers, printers and dark screens keep apart.

Six colours after Okabe and Ito, whose yellow and black are left out because they vanish on white or on dark paper, a
grey, and seven marks: category k has colour k mod 7 and, from the eighth on, another mark.
"""

from __future__ import annotations

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
MARKS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
PATTERNS = ("", "/", "x", ".", "-", "|", "+")  # of bars, as plotly names them
GLYPHS = ("●", "◆", "■", "▲", "✚", "✖", "★")  # the marks, as text

KEPT, DROPPED = COLOURS[0], COLOURS[1]
NOTHING = "#8C8C8C"  # no cluster, no topic


def colour(category: int) -> str:
    """Colour of a category; grey for a negative one."""
    return COLOURS[category % len(COLOURS)] if category >= 0 else NOTHING


def mark(category: int) -> str:
    """Plotly's name of the category's mark."""
    return MARKS[category // len(COLOURS) % len(MARKS)] if category >= 0 else MARKS[0]


def pattern(category: int) -> str:
    """Plotly's name of the category's hatching; from the eighth on a colour has another one."""
    return PATTERNS[(category + category // len(COLOURS)) % len(PATTERNS)]


def glyph(category: int) -> str:
    """The category's mark as a character."""
    return GLYPHS[MARKS.index(mark(category))]
