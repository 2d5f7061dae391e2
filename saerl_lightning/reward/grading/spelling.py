r"""Normalises the many spellings of LaTeX, Unicode and habit. Pure string functions in linear time.

The meaning must not change. For example, spaces between digits stay, so that `1 2` does not become 12.
"""

from __future__ import annotations

import re

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "∙": r" \cdot ", "÷": "/", "⁄": "/",
        "π": r" \pi ", "∞": r" \infty ", "≤": r" \le ", "≥": r" \ge ", "⩽": r" \le ", "⩾": r" \ge ", "≠": r" \ne ",
        "≈": r" \approx ", "≡": r" \equiv ", "∪": r" \cup ", "∩": r" \cap ", "∈": r" \in ", "∅": r" \emptyset ",
        "±": r" \pm ", "∓": r" \mp ", "ℝ": r" \mathbb{R} ", "θ": r" \theta ", "α": r" \alpha ", "β": r" \beta ",
        "λ": r" \lambda ", "√": r"\sqrt ", "°": r"^{\circ}", "⟨": r"\langle ", "⟩": r"\rangle ",
        "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "，": ",", "（": "(", "）": ")", "“": "", "”": "",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_ROWS = re.compile(r"\\begin\{(?:[pbvBV]?matrix|smallmatrix|array|cases|align)")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_GONE = re.compile(
    r"\\!\s*|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|nonumber|hfill|allowbreak)(?![a-zA-Z])"
    r"|\\[hv]?phantom\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}|\\(?:label|tag)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}"
    r"|(?<!\\)\\[()\[\]]|\*\*(?!\s*\d)|`|&(?=\s*=)"
)
_SPACE = re.compile(
    r"(?<!\\)\\[,:;> ]|~|\\(?:q?quad|enspace|thinspace|medspace|thickspace|space|newline)(?![a-zA-Z])|\s"
)
_THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|~|\{,\}|\{\\,\})(?=\d{3}(?!\d))")
_TEXT = re.compile(r"\\(?:text(?:bf|rm|it|normal|tt|sf|sc|up|md)?|mbox|hbox|emph|operatorname\*?)\s*\{([^{}]*)\}")
_FONTS = r"\\(?:math(?:rm|bf|it|sf|tt|normal|frak|cal)|bold(?:symbol)?|bm|pmb|ensuremath|underline|boxed|fbox)\s*"
_FONT = re.compile(
    rf"{_FONTS}\{{([^{{}}]*)\}}"
    r"|\\textcolor\s*\{[^{}]*\}\s*\{([^{}]*)\}|\{\\(?:rm|bf|it)\s+([^{}]*)\}"
)
_FONT_OF_GROUP = re.compile(_FONTS + r"(?=\{)")
_LONE_UNIT = re.compile(r"(?: |~|\\[ ,])\s*[msghLNWVK]\s*")  # letters that are no choice
_WORDS = re.compile(r"[A-Za-z][A-Za-z .^0-9-]+")
_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "ldots": "dots",
    "cdots": "dots", "colon": ":", "varnothing": "emptyset", "degree": "^{\\circ}", "imath": "i", "rarr": "to",
    "lvert": "|", "rvert": "|", "vert": "|", "smallsetminus": "setminus", "backslash": "setminus", "land": "text{ and }",
    "lor": "text{ or }", "approxeq": "approx", "simeq": "approx", "exponentialE": "e", "dollar": "$", "percent": "%",
    "ast": "cdot", "bigcup": "cup", "implies": "Rightarrow", "iff": "Leftrightarrow",
}  # fmt: skip
_COMMAND = re.compile(r"(?<!\\)\\([a-zA-Z]+)")
_PLAIN_SIGN = re.compile(r"<=|>=|!=|==|⇒|\binfinity\b|(?<![a-zA-Z\\])(?:inf|pi)(?![a-zA-Z])")
_SIGNS = {"<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "==": "=", "⇒": r"\Rightarrow ", "pi": r"\pi "}
# As in TeX, an argument without braces is one sign. After two such arguments, a further digit would be ambiguous.
_SIGN = r"\d|[a-zA-Z]|\\(?:pi|theta|alpha|beta|gamma|lambda|mu|phi|omega|sigma|infty)(?![a-zA-Z])"
_FRAC_BARE = re.compile(
    rf"\\frac(?![a-zA-Z])\s*(?:(?P<top>{_SIGN})\s*(?:(?=\{{)|(?P<below>{_SIGN})(?!\d))"
    rf"|(?P<group>\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*(?P<under>{_SIGN})(?!\d))"
)
_CHOOSE_BARE = re.compile(r"\\binom\s*(\d)\s*(\d)(?!\d)")
_TIMES = re.compile(r"(?<=\d) [xX] (?=[$\d])")
_ROOT_BARE = re.compile(r"\\sqrt\s*(\d+|[a-zA-Z])(?![a-zA-Z{])|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")
_SCRIPT = re.compile(r"([\^_])\s*(?:\{\s*(\w)\s*\}|(\w)|\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})")
_LEFT_EDGE, _RIGHT_EDGE = " *,;:", " *.,;:"


def tidied(answer: str) -> str:
    r"""Normalises the spelling of an answer: no layout and fonts, one command per meaning, single spaces.

    Text stays `\text{…}` (also from `\mathrm` or `\mbox` with several letters), because it is read as words.
    """
    if _PLAIN.fullmatch(answer):
        return answer
    answer = answer.translate(_UNICODE).strip()
    if not _ROWS.search(answer):
        answer = _DOUBLED.sub(r"\\", answer)
    answer = _GONE.sub("", _THIN_THOUSANDS.sub(",", answer))
    # Fonts are nested a few levels deep. Each pass removes the innermost level.
    for _ in range(4):
        answer, count = _FONT.subn(_bare_font, _TEXT.sub(_as_text, answer))
        if not count:
            break
    answer = _SPACE.sub(" ", _FONT_OF_GROUP.sub("", answer).replace("{, }", ",").replace("{,}", ","))
    answer = _COMMAND.sub(_synonym, _PLAIN_SIGN.sub(lambda sign: _SIGNS.get(sign[0], r"\infty "), answer))
    answer = _FRAC_BARE.sub(_braced_fraction, answer)
    answer = _CHOOSE_BARE.sub(r"\\binom{\1}{\2}", _TIMES.sub(r" \\times ", answer))
    answer = _ROOT_BARE.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", answer)
    answer = _SCRIPT.sub(lambda script: f"{script[1]}{{{script[2] or script[3] or chr(92) + 'circ'}}}", answer)
    answer = re.sub(r"\\(?=[%])|(?<!\\)\$|\\\$", lambda sign: "$" if sign[0] == r"\$" else "", answer)
    return unwrapped(_trimmed(re.sub(r"  +", " ", answer)))


def compact(tidy: str) -> str:
    """Removes the spaces of a normalised answer, except between two words or two numbers."""
    return re.sub(r"(?<![\w.]) | (?![\w.])", "", tidy)


def unwrapped(tidy: str) -> str:
    """Removes a pair of braces around the whole answer."""
    for _ in range(3):
        if not (tidy.startswith("{") and tidy.endswith("}") and closing(tidy, 0) == len(tidy) - 1):
            break
        tidy = _trimmed(tidy[1:-1])
    return tidy


def closing(tidy: str, start: int) -> int:
    """Returns the position of the bracket, of any kind, that closes the one at `start`; -1 if none does."""
    depth = 0
    for bracket in re.finditer(r"\\.|[{}()\[\]]", tidy[start:]):
        if bracket[0] in ("\\{", "{", "(", "["):
            depth += 1
        elif bracket[0] in ("\\}", "}", ")", "]"):
            depth -= 1
            if depth == 0:
                return start + bracket.end() - 1
    return -1


def _trimmed(tidy: str) -> str:
    tidy = tidy.lstrip(_LEFT_EDGE).rstrip(_RIGHT_EDGE)
    return tidy.rstrip("\\ ") if tidy.endswith("\\\\") else tidy


def _as_text(found: re.Match[str]) -> str:
    words = found[1].strip()
    if _LONE_UNIT.fullmatch(found[1]):
        return f"\\text{{ {words}}}"
    lone = re.fullmatch(r"\(?\s*([A-Za-z0-9.,+-]*)\s*\)?", words)
    if lone and len(lone[1]) <= 1:  # a choice, a variable, or nothing at all
        return f" {words} " if words else " "
    return f"\\text{{{found[1]}}}"


def _bare_font(found: re.Match[str]) -> str:
    inside = next((part for part in found.groups() if part is not None), "")
    if "math" in found[0][:6] and (_WORDS.fullmatch(inside) or _LONE_UNIT.fullmatch(inside)):
        return f"\\text{{{inside.replace('~', ' ')}}}"
    return inside


def _synonym(found: re.Match[str]) -> str:
    name = _SYNONYMS.get(found[1], found[1])
    return f"\\{name}" if name[0].isalpha() and name not in ("i", "e") else name


def _braced_fraction(found: re.Match[str]) -> str:
    bottom = found["below"] or found["under"]
    return f"\\frac{found['group'] or _braced(found['top'])}{_braced(bottom) if bottom else ''}"


def _braced(sign: str) -> str:
    return f"{{{sign}}}"


_TOKEN = re.compile(
    r"\\begin\{\w+\}|\\end\{\w+\}|\\[{}]|\\langle(?![a-zA-Z])|\\rangle(?![a-zA-Z])|\d{1,3}(?:,\d{3})+(?!\d)"
    r"|,? ?\\text\{ ?(?P<text>and|or) ?\}|,? ?\b(?<!\\)(?P<word>and|or)\b"
    r"|\\[a-zA-Z]+|\\.|[{}()\[\],;&]|<=|[<>=]|\d+|[a-zA-Z]+|.",
    re.DOTALL,
)
_ROUND_TOKEN = re.compile(_TOKEN.pattern.replace(r"(?:,\d{3})+", r"(?:,0\d\d)+"), re.DOTALL)
_OPEN = {"(", "[", "{", "\\{", "\\langle"}
_CLOSE = {")", "]", "}", "\\}", "\\rangle"}


def split_outside_brackets(
    tidy: str, separators: frozenset[str], thousands: bool = True
) -> tuple[list[str], list[str]]:
    r"""Splits an answer at separators outside of all brackets.

    Args:
        tidy: Normalised text of an answer.
        thousands: Whether a comma before three digits separates thousands. If false, only before a zero and two digits.
        separators: Separators such as `,`, `;`, `and`, `or` (also in `\text{}`), or a command such as `\cup`.

    Returns:
        The texts between the separators, and the separators. A comma between thousands is not a separator.
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
    r"""Returns the opening bracket, the content and the closing bracket, if one pair encloses everything; else None.

    The two brackets may be of different kinds: `[0, 1)`.
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
