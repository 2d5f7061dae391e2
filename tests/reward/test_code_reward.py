"""Programs against tests: every form of tests that data sets have, and what counts as passed."""

import json
import math

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.reward.code_reward import CodeReward, program_of
from saerl_lightning.reward.jobs.code_tests import same_text
from tests.reward.examples import rollouts

ADD = "def add(a, b):\n    return a + b"
WRONG = "def add(a, b):\n    return a - b"
PAIRS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
READS = "a, b = map(int, input().split())\nprint(a + b)"
HUMAN_EVAL = {
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
    "    assert abs(candidate(0.1, 0.2) - 0.3) < 1e-6",
    "entry_point": "add",
}
MBPP = {"test_list": ["assert add(1, 2) == 3", "assert add(b=2, a=2) == 4", "assert set([add(1, 1)]) == set((2,))"]}
APPS = {"fn_name": "add", "inputs": [[1, 2], ["3\n", "4"]], "outputs": [3, [7]]}


ROOTS = {  # as HumanEval's 32nd: the test calls another function of the program, and a module that it does not import
    "test": "def check(candidate):\n    for low in [[-1, 0.5], [2, 1]]:\n        found = candidate(low)\n"
    "        assert math.fabs(line(low, x=found)) < 1e-6\n        assert low == sorted(low, key=low.index)",
    "entry_point": "root",
}
LINE = "def line(low, x):\n    return low[0] + low[1] * x\n"
CHANGES = "    low[:] = [0, 0]\n    return 7.0"  # its own copy of the argument


@pytest.fixture(scope="module")
def reward():
    made = CodeReward(workers=2)
    yield made
    made.close()


def prompt(answer: str = "", **columns) -> Prompt:
    return Prompt("add", ({"role": "user", "content": "Add two numbers."},), answer, columns=columns)


def grades(reward: CodeReward, asked: Prompt, *codes: str) -> list[float]:
    found = reward([asked], rollouts([f"So:\n```python\n{code}\n```\nDone." for code in codes]))[0].tolist()
    assert not any(map(math.isnan, found)), reward.last_failure
    return found


SOLUTION = "class Solution:\n    def add(self, a, b):\n        return int(a) + int(b)"


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        (prompt(json.dumps(PAIRS)), READS, READS.replace("+", "-")),
        (prompt("x", input_output=json.dumps(PAIRS)), READS, "print(3)"),
        (prompt(json.dumps([{"input": "1 2", "output": "3"}])), READS, READS + "\nprint()\nprint(1)"),
        (prompt(json.dumps(APPS)), "def add(a, b):\n    return int(a) + int(b)", ADD),
        (prompt("x", input_output=APPS), SOLUTION, SOLUTION.replace("+", "-")),
        (prompt("x", **MBPP), ADD, WRONG),
        (prompt(json.dumps(MBPP["test_list"])), ADD, WRONG),
        (prompt("assert add(1, 2) == 3"), ADD, WRONG),
        (prompt("x", **MBPP, test_setup_code="", test_imports=["import math"]), ADD, "add = 3"),
        (prompt("x", **HUMAN_EVAL), ADD, WRONG),
        (
            prompt("x", **ROOTS),
            f"{LINE}def root(low):\n    return -low[0] / low[1]",
            f"{LINE}def root(low):\n{CHANGES}",
        ),
    ],
)
def test_every_form_of_tests_tells_right_from_wrong(reward, asked, right, wrong):
    reward.require([asked])
    assert grades(reward, asked, right, wrong, "add = (", "", "raise SystemExit(0)") == [1, 0, 0, 0, 0]


def test_the_share_of_passed_tests(reward):
    """Of four tests: all, those with b = 0, none; a hang costs what comes after it."""
    four = [f"assert add({a}, {b}) == {a + b}" for a, b in ((1, 0), (1, 1), (2, 0), (2, 2))]
    hangs = "def add(a, b):\n    while b == 2: pass\n    return a + b"
    shares = CodeReward(partial=True, deadline_s=2.0, workers=1)
    assert grades(shares, prompt("x", test_list=four), ADD, WRONG, "add = 3", hangs) == [1, 0.5, 0, 0.75]
    pairs = {"inputs": ["0", "1", "2"], "outputs": ["1", "1", "4"]}
    assert grades(shares, prompt(json.dumps(pairs)), "print(int(input()) ** 2 or 1)", "print(1)") == [
        1,
        pytest.approx(2 / 3),
    ]
    shares.close()
    assert grades(reward, prompt("x", test_list=four), ADD, WRONG) == [1, 0]
    first = CodeReward(most=1, workers=1)
    assert grades(first, prompt("x", test_list=four), ADD, WRONG) == [1, 1]
    first.close()


def test_results_that_are_equal_though_not_of_one_type(reward):
    tests = [
        "assert f(0) == [1, 2]",
        "assert f(1) == {'a': (1, 2.5)}",
        "assert f(2) == 2",
        "assert f(3) == float('inf')",
    ]
    code = (
        "import collections, numpy\n"
        "def f(i):\n"
        "    class Mine(list): pass\n"
        "    return [Mine([1, 2]), collections.OrderedDict(a=(1, 2.5)), numpy.int64(2), numpy.inf][i]"
    )
    assert grades(reward, prompt("x", test_list=tests), code) == [1]


@pytest.mark.parametrize(
    ("printed", "wanted", "same"),
    [
        ("3", "3\n", True),
        ("1 2 \n3\n\n", "1  2\n3", True),
        ("1\n2", "1 2", False),
        ("0.33333333", "0.3333333", True),
        ("0.34", "0.33", False),
        ("3.0", "3", False),
        ("1e400", "1.0", False),
        ("yes", "YES", False),
        ("", "", True),
        ("nan", "0.5", False),
    ],
)
def test_printed_texts_are_compared_word_by_word(printed, wanted, same):
    assert same_text(printed, wanted) == same


def test_the_last_fenced_block_is_the_program():
    assert program_of("```python\na\n```\nor\n```\nb\nc\n```\n") == "b\nc"
    assert program_of("<think>```\na\n```</think>x = 1") == "x = 1"
    assert program_of("so\n  ```py\nx = 1") == "x = 1"
    assert program_of("x = 1") == "x = 1"


@pytest.mark.parametrize(
    ("asked", "arguments", "said"),
    [
        (
            prompt("42"),
            {},
            "no tests for prompt 'add' in its columns and its answer: 42 are no tests. It reads",
        ),
        (prompt("the sum"), {}, "'the sum' are no tests"),
        (prompt('{"inputs": ["1"], "outputs": []}'), {}, "has not as many inputs as outputs"),
        (prompt("x", test_list=["assert ("]), {}, "a test is no Python"),
        (prompt("x", tests={"deep": "?"}), {"tests": "tests.deep"}, "in its column 'tests.deep': '\\?' are no tests"),
        (prompt("x"), {"tests": "tests"}, "None are no tests"),
    ],
)
def test_prompts_without_tests_are_refused_at_the_door(asked, arguments, said):
    with pytest.raises(InputError, match=said):
        CodeReward(**arguments).require([asked])


def test_a_grader_that_can_not_start_is_not_a_wrong_program(caplog):
    small = CodeReward(memory_mb=64, workers=1)
    small.memory_mb = 1
    [score] = small([prompt("assert add(1, 2) == 3")], rollouts([ADD]))[0].tolist()
    assert math.isnan(score) and "memory_mb is 1, and Python must fit into it" in small.last_failure
    small.close()
