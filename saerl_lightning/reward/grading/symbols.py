r"""Compares formulas symbolically: constants to 40 digits, everything else with math-verify.

latex2sympy2-extended, which math-verify is built on, parses them. All of this may hang (powers, factorials, integrals),
so call it in a process that can be killed. Numbers, lists, intervals and words are compared in `equality`, because
math-verify accepts some that are not equal.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from saerl_lightning.reward.grading.numbers import Number, decimals_of
from saerl_lightning.reward.grading.spelling import compact

if TYPE_CHECKING:
    from fractions import Fraction

    from sympy import Basic

DIGITS = 60
LONGEST = 600  # characters: the parser takes seconds for longer formulas
_POINTS = (
    (0.73, 1.31, 0.47, 1.89, 2.23, 0.59),
    (-0.61, 1.17, -1.43, 0.83, -0.39, 2.11),
    (2.03, -0.77, 1.13, -1.71, 0.91, -0.53),
)


def prepare() -> None:
    """Imports the parser and math-verify before the first job, and silences the message that timeouts are off."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.ERROR)


def equal(gold: str, answer: str) -> bool:
    """Whether two formulas are equal."""
    if compact(gold) == compact(answer):
        return True
    first, second = expression(gold), expression(answer)
    return first is not None and second is not None and _equal(first, second)


def has_value(formula: str, number: Number) -> bool:
    """Whether the value of a formula equals a number, exactly or after rounding."""
    expr = expression(formula)
    if expr is None or not _is_constant(expr):
        return False
    wanted = number.value / 100 if number.percent else number.value
    return _same_constant(expr, _rational(wanted)) or _rounds_to(expr, number)


@lru_cache(maxsize=512)
def expression(latex: str) -> Any:  # a sympy object: expression, relation, set or matrix
    """Parses a normalised formula with the parser of math-verify; None if it can't be parsed."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex
    from sympy import I

    if len(latex) > LONGEST:
        return None
    spelled = re.sub(r"\\text ?\{ ?([a-zA-Z]) ?\}", r"\1", latex)
    settings = ConversionConfig(lowercase_symbols=False)
    try:
        expr: Any = latex2sympy(
            spelled, is_real=not should_treat_as_complex(spelled), normalization_config=None, conversion_config=settings
        )
        units = [each for each in expr.free_symbols if each.name == "i"]
        return expr.subs(units[0], I) if units else expr
    except Exception:  # the parser raises many types of exceptions
        return None


def _equal(gold: Any, answer: Any) -> bool:
    from sympy import Eq, MatrixBase, Symbol
    from sympy.core.relational import Relational

    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return gold.shape == answer.shape and all(map(_equal, gold.flat(), answer.flat()))
    if _is_constant(gold) and _is_constant(answer):
        return _same_constant(gold, answer)
    if isinstance(gold, Symbol) or isinstance(answer, Symbol):
        return gold == answer
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        return _same_equation(gold, answer)
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return _same_inequality(gold, answer)
    return _verified(gold, answer) and not _refuted(gold, answer)


def _verified(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def _is_constant(expr: Any) -> bool:
    from sympy import Expr

    return isinstance(expr, Expr) and not expr.free_symbols and expr.is_commutative is not False


def _value(expr: Any) -> Any:
    """Computes the value to 60 digits, with decimals as exact fractions; None if it is not finite."""
    from sympy import Float, Rational

    exact = expr.xreplace({each: Rational(str(each)) for each in expr.atoms(Float)})
    value = exact.evalf(DIGITS)
    return value if value.is_number and value.is_finite else None


def _same_constant(gold: Any, answer: Any) -> bool:
    try:
        first, second = _value(gold), _value(answer)
    except Exception:
        return False
    if first is None or second is None:
        return bool(gold == answer)
    return bool(abs(first - second) <= 10 ** (-DIGITS * 2 // 3) * max(abs(first), abs(second)))


def _rational(value: Fraction) -> Basic:
    from sympy import Rational

    return Rational(value.numerator, value.denominator)


def _rounds_to(expr: Any, number: Number) -> bool:
    from fractions import Fraction

    try:
        value = _value(expr)
        return value is not None and bool(value.is_real) and decimals_of(Fraction(str(value)), number)
    except (ValueError, TypeError):
        return False


def _values_at_points(expr: Any, symbols: list) -> list:
    """Evaluates an expression at a few fixed points, with the symbols in the given order."""
    values = []
    for point in _POINTS:
        places = {symbol: point[i % len(point)] + i // len(point) for i, symbol in enumerate(symbols)}
        values.append(expr.subs(places).evalf(20))
    return values


def _refuted(gold: Any, answer: Any) -> bool:
    """Whether two expressions differ at a point. Needed because math-verify ignores small coefficients."""
    from sympy import Expr

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    try:
        pairs = zip(_values_at_points(gold, symbols), _values_at_points(answer, symbols), strict=True)
        return any(a.is_number and b.is_number and abs(a - b) > 1e-9 * max(abs(a), abs(b)) for a, b in pairs)
    except Exception:
        return False


def _proportion(gold: Any, answer: Any) -> Any:
    """Returns the factor between two proportional expressions; None if they are not proportional."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if gold.free_symbols != answer.free_symbols:
        return None
    try:
        ratios = [
            a / b for a, b in zip(_values_at_points(gold, symbols), _values_at_points(answer, symbols), strict=True)
        ]
        constant = all(each.is_finite and abs(each - ratios[0]) <= 1e-9 * abs(ratios[0]) for each in ratios)
        return ratios[0] if constant and ratios[0] != 0 else None
    except Exception:
        return None


def _same_equation(gold: Any, answer: Any) -> bool:
    from sympy import solve

    if _proportion(gold.lhs - gold.rhs, answer.lhs - answer.rhs) is not None:
        return True
    if gold.free_symbols != answer.free_symbols:
        return False
    try:
        # `solve` must succeed: math-verify would call two equations equal that it can't solve.
        return bool(solve(gold)) and _verified(gold, answer)
    except Exception:
        return False


def _same_inequality(gold: Any, answer: Any) -> bool:
    factor = _proportion(gold.lhs - gold.rhs, answer.lhs - answer.rhs)
    if factor is not None and factor.is_real:
        return type(gold) is type(answer) if factor > 0 else type(gold) is type(answer.reversedsign)
    try:
        return gold.free_symbols == answer.free_symbols and gold.as_set() == answer.as_set()
    except Exception:
        return False
