"""Asserts that run apart from the code: which do, and that they tell right from wrong as in the code's own process."""

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.records import Prompt
from saerl_lightning.reward.code_reward import CodeReward
from saerl_lightning.reward.jobs.asserts import apart
from saerl_lightning.reward.jobs.code_tests import UNREADABLE
from saerl_lightning.reward.jobs.confined import spelled, valued
from tests.reward.examples import rollouts

CALLS = {
    "assert abs(f(2) - 1.5) < 1e-6": ("f",),
    "assert f([1, 2]) is True and not g(x=-3)": ("f", "g"),
    "assert all(f(i) == i * 2 for i in range(5))": ("f",),
    "assert f(sorted([2, 1])) != f(len('ab')), 'told'": ("f",),
    "assert math.isclose(f(2), math.pi)": ("f",),
    "assert np.allclose(f(2), [1])": ("f",),
    "assert f('a').upper().split() == list('A')": ("f",),
    "assert string('a') > string('b')": ("string",),  # a function with the name of a module
    "assert isinstance(f(2), float)": ("f",),
    "assert f(1).val == g(2)": None,  # an attribute of an object of the code
    "assert f(Node(1).next) > 2": None,
    "assert sorted([1, 2], key=f) == g(1)": None,  # the function itself
    "assert f(lambda x: x) > 2": None,
    "assert f(math.inf) > 2": None,
    "assert f(range(3)) > 2": None,  # an argument without a literal
    "assert callable(f(2))": None,
    "assert next(f(2)) > 1": None,
    "assert isinstance(f(2), Node)": None,
    "assert LIMIT < f(2)": None,  # a name that the code gives a value
    "assert len([1]) == 1": None,  # asks nothing of the code
    "x = f(2)\nassert x > 1": None,
}


@pytest.mark.parametrize("test", CALLS)
def test_asserts_run_apart_if_calls_take_and_give_literals(test):
    found = apart(ast.parse(test), "import numpy as np")
    assert (found.calls if found else None) == CALLS[test]


def test_a_setup_that_does_more_than_import_keeps_its_asserts():
    assert apart(ast.parse("assert f(root) > 1"), "root = Node(1)") is None
    assert apart(ast.parse("assert f(1) > 1"), "root = Node(1)") is None
    assert apart(ast.parse("assert f(1) > 1"), "from math import *") is None


VERDICTS = {
    "assert abs(f(2) - 1.5) < 1e-6": ("return 1.5 + 1e-9", "return 1.6"),
    "assert list(f(3)) == [0, 1, 2]": ("yield from range(x)", "yield from range(2)"),
    "assert set(f(3)) == {0, 1}": ("return {0: 'a', 1: 'b'}.keys()", "return range(3)"),
    "assert f(2) is None or f(2) > 1": ("return None", "return 1"),
    "assert isinstance(f(2), float)": ("import numpy\n    return numpy.float64(1)", "return 1"),
    "assert round(f(x=2)[0], 1) == f(3)[0] - 1": ("return (x * 1.0,)", "return (1,)"),
    "assert math.isclose(f(2), math.pi)": ("return math.pi", "return 3"),
    "assert f(2) == fractions.Fraction(1, 3)": (
        "return fractions.Fraction(1, 3)",
        "return fractions.Fraction(1, x)",
    ),
    "assert max(f(2)) == datetime.timedelta(1)": (
        "return [datetime.timedelta(hours=24)]",
        "return [datetime.timedelta(hours=25)]",
    ),
}


@pytest.mark.parametrize("test", VERDICTS)
def test_an_assert_apart_has_the_verdict_of_one_beside_the_code(test):
    reward = CodeReward(workers=1, deadline_s=5.0)
    here = f"{test} and (lambda: True)()"  # a lambda keeps it beside the code
    assert apart(ast.parse(test), "") and not apart(ast.parse(here), "")
    for asked in (test, here):
        prompt = Prompt("p", ({"role": "user", "content": "?"},), json.dumps([asked]))
        grades = [
            float(reward([prompt], rollouts([f"import datetime, fractions, math\ndef f(x):\n    {body}"])))
            for body in VERDICTS[test]
        ]
        assert grades == [1, 0], asked
    reward.close()


def test_shares_count_asserts_of_both_kinds():
    """Of four asserts all but the second run apart; the program is right for even numbers, and hangs at the last."""
    tests = ["assert f(2) > 1", "assert f(3) == 6", "assert f(4) > 7", "assert f(5) > 9"]
    prompt = Prompt("p", ({"role": "user", "content": "?"},), json.dumps(tests))
    reward = CodeReward(workers=1, deadline_s=3.0, partial=True)
    code = "def f(x):\n    while x == 5: pass\n    return 2 * x if x % 2 == 0 else 0"
    assert float(reward([prompt], rollouts([code]))) == 0.5
    assert float(reward([prompt], rollouts(["def f(x): return 2 * x"]))) == 1
    assert float(reward([prompt], rollouts(["def f(x): return ("]))) == 0
    reward.close()


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.complex_numbers(allow_nan=False)
)
MADE = st.fractions() | st.decimals(allow_nan=False) | st.dates() | st.times() | st.datetimes() | st.timedeltas()
NESTED = st.recursive(
    PLAIN | MADE,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | MADE, inner) | st.sets(MADE),
)


@given(NESTED)
def test_a_result_comes_back_as_it_was(value):
    assert valued(spelled(value)) == value


@pytest.mark.parametrize(
    "text",
    ["Fraction(1, 0)", "Fraction(numerator=1)", "print(1)", "date(1, 2)", "Fraction([1])", "[*[1]]", "{**{}}", "f"],
)
def test_a_text_that_is_no_result_is_none(text):
    with pytest.raises(UNREADABLE):
        valued(text)


def test_numbers_without_a_literal_are_right_or_wrong_by_their_value():
    reward = CodeReward(workers=1, deadline_s=5.0)
    prompt = Prompt("p", ({"role": "user", "content": "?"},), json.dumps(["assert half(2) == [0.5]"]))
    codes = [f"from {home} import {made.partition('(')[0]}\ndef half(x): return [{made}]" for home, made in HALVES]
    assert [float(reward([prompt], rollouts([code]))) for code in codes] == [1, 1, 0, 0]
    reward.close()


HALVES = [
    ("fractions", "Fraction(1, 2)"),
    ("decimal", "Decimal('0.5')"),
    ("fractions", "Fraction(1, 3)"),
    ("datetime", "date(1, 2, 3)"),
]
