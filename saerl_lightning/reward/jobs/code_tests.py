"""Tests of code, in the forms that data sets have, and whether a program passes them, for grader processes: no torch."""

from __future__ import annotations

import ast
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from saerl_lightning.reward.jobs.asserts import AssertApart, apart
from saerl_lightning.reward.jobs.confined import valued
from saerl_lightning.reward.jobs.program import Limits, Program, end_orphans

UNREADABLE = (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError)  # of a result's text
FORMS = (
    "a column `test` with `entry_point` (HumanEval), `test_list` (MBPP), `input_output` (APPS, TACO), or an answer such as "
    '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]} or ["assert add(1, 2) == 3"]'
)


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Args:
        passed: Whether it passed each test; tests after the first failure may not have been run.
        missing: Walls that the kernel did not put up around it.
    """

    passed: Sequence[bool]
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class ScriptTests:
    """Programs that read their input and print: what they are given, and what they must print.

    Args:
        inputs: Standard input of each test.
        outputs: Text that must be printed in each.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of tests."""
        return len(self.inputs)

    def verdict(self, code: str, limits: Limits, every: bool) -> Verdict:
        """Runs a program once for each test. What must be printed is never given to the program.

        Args:
            code: Source of the program.
            limits: Limits of its process; the deadline holds for all tests together.
            every: Whether tests are run after one has failed.
        """
        passed: list[bool] = []
        left, missing = limits, ()
        for given, wanted in zip(self.inputs, self.outputs, strict=True):
            with Program(left, given, len(wanted)) as program:
                program.send({"program": code})
                printed = program.printed()
            passed.append(printed is not None and same_text(printed, wanted))
            left, missing = left.less(program.seconds), program.missing
            if left.deadline_s <= 0 or not (passed[-1] or every):
                break
        return Verdict([*passed, *[False] * (len(self) - len(passed))], missing)


@dataclass(frozen=True)
class ValueCheck:
    """An expression, and the value that it must have, which the program never gets.

    Args:
        expression: Python expression that calls what the program defines.
        value: Value that it must have.
        loose: Whether lists and tuples are the same, and the value may stand in a list of one.
    """

    expression: str
    value: Any
    loose: bool = False

    def asked(self) -> dict[str, str]:
        """What the program's process is asked."""
        return {"value": self.expression}

    def passed(self, answer: str) -> bool:
        """Whether an answer, a literal, is right."""
        try:
            given = valued(answer)
            return given == self.value or (self.loose and _listed(given) in (_listed(self.value), *_only(self.value)))
        except UNREADABLE:
            return False


@dataclass(frozen=True)
class StatementCheck:
    """Statements that raise where the code is wrong.

    Args:
        code: Python statements that use what the program defines.
    """

    code: str

    def asked(self) -> dict[str, str]:
        """What the program's process is asked."""
        return {"run": self.code}

    def passed(self, answer: str) -> bool:
        """Whether the statements ran to their end."""
        return answer == "True"


@dataclass(frozen=True)
class LibraryTests:
    """Functions and classes: how they are checked once they are defined.

    Args:
        setup: Statements to run before the checks.
        checks: What must hold.
        apart: Asserts that must hold too, and run in another process than the code.
    """

    setup: str
    checks: tuple[ValueCheck | StatementCheck, ...]
    apart: tuple[AssertApart, ...] = ()

    def __len__(self) -> int:
        """Returns the number of checks."""
        return len(self.checks) + len(self.apart)

    def verdict(self, code: str, limits: Limits, every: bool) -> Verdict:
        """Defines what the code defines, and checks it, in one process; the checks are sent there after that.

        Args:
            code: Source of the functions.
            limits: Limits of the process.
            every: Whether tests are run after one has failed.
        """
        key, passed = secrets.token_hex(8), []
        with Program(limits) as program, ExitStack() as others:
            tests = others.enter_context(Program(limits)) if self.apart else None
            program.send({"library": code})
            if program.heard() != {"loaded": True}:
                return Verdict([False] * len(self), program.missing)
            program.send({"key": key, "setup": self.setup, "checks": [check.asked() for check in self.checks]})
            if tests:
                tests.send({"asserts": [[each.code, each.calls] for each in self.apart]})
            for check in self.checks:
                said = program.heard()
                answer = said.get("value") if isinstance(said, dict) and said.get("key") == key else None
                passed.append(isinstance(answer, str) and check.passed(answer))
                if said is None or not (passed[-1] or every):
                    break
            while tests and len(self.checks) <= len(passed) < len(self) and (every or all(passed)):
                passed.append(_held(program, tests, key))
        return Verdict([*passed, *[False] * (len(self) - len(passed))], program.missing)


@dataclass(frozen=True)
class FunctionTest:
    """A test that defines `check`, which is called with a function and raises where it is wrong.

    Args:
        code: Source of the test.
        name: Name of the function.
    """

    code: str
    name: str

    def __len__(self) -> int:
        """Returns 1: all that `check` asserts is one test."""
        return 1

    def verdict(self, code: str, limits: Limits, every: bool) -> Verdict:
        """Runs the test in a process that the code can't reach; only calls and their results, as literals, go to and fro.

        Args:
            code: Source of the function.
            limits: Limits of each of the two processes.
            every: Has no meaning for one test.
        """
        key = secrets.token_hex(8)
        with Program(limits) as program, Program(limits) as test:
            program.send({"library": code})
            if program.heard() != {"loaded": True}:
                return Verdict([False], program.missing)
            test.send({"test": self.code, "name": self.name})
            return Verdict([_held(program, test, key)], program.missing)


def _held(program: Program, test: Program, key: str) -> bool:
    """Whether a test holds; its calls are sent to the code's process, and their results back, as literals."""
    while isinstance(said := test.heard(), dict) and "call" in said:
        program.send({"key": key, "setup": "", "checks": [{"value": said["call"], "listed": said["listed"]}]})
        test.send(_answer(program.heard(), key))
    return isinstance(said, dict) and said.get("held") is True


def _answer(said: Any, key: str) -> dict[str, str]:
    """What the test is told of a call: a literal, or that there is none."""
    value = said.get("value") if isinstance(said, dict) and said.get("key") == key else None
    try:
        valued(value if isinstance(value, str) else "")
    except UNREADABLE:
        return {"error": "the call has no result"}
    return {"value": str(value)}


Tests = ScriptTests | LibraryTests | FunctionTest


def graded(code: str, tests: Tests, limits: Limits, every: bool) -> Verdict:
    """Runs a program against tests; for grader processes that `adopt`, as all that the calling thread started is ended.

    Args:
        code: Source of the program.
        tests: What it must do.
        limits: Limits of its process.
        every: Whether tests are run after one has failed.
    """
    try:
        return tests.verdict(code, limits, every)
    finally:
        end_orphans()


# -- forms of tests ----------------------------------------------------------------------------------------------------


def tests_of(row: Mapping[str, Any], answer: str, most: int | None = None) -> Tests:
    """Reads the tests of a data row.

    Args:
        row: Columns of the row.
        answer: Answer of its prompt, which is read where no column holds tests.
        most: Number of tests that are kept; null for all.

    Raises:
        ValueError: saying what was found in their place.
    """
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):
        return _function(row["test"], row["entry_point"])
    if row.get("test_list"):
        setup = [row.get("test_setup_code") or "", *_texts(row.get("test_imports") or [])]
        return _asserts(_texts(row["test_list"])[:most], "\n".join(setup))
    return read(row["input_output"] if row.get("input_output") else answer, most)


def read(value: Any, most: int | None = None) -> Tests:
    """Reads tests from a value, or from JSON.

    Args:
        value: Pairs of inputs and outputs, a list of asserts, or either as JSON.
        most: Number of tests that are kept; null for all.

    Raises:
        ValueError: saying what was found in their place.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            if not value.lstrip().startswith("assert"):
                raise ValueError(f"{value[:60]!r} are no tests") from None
            value = [value]
    if isinstance(value, Mapping) and (listed := value.get("assert_case") or value.get("test_list")):
        value = listed
    if isinstance(value, Sequence) and value and all(isinstance(each, Mapping) for each in value):
        value = {"inputs": [each.get("input") for each in value], "outputs": [each.get("output") for each in value]}
    if isinstance(value, Mapping):
        return _pairs(value, most)
    if isinstance(value, Sequence) and value and all(isinstance(each, str) for each in value):
        return _asserts([*value][:most], "")
    raise ValueError(f"{value!r:.60} are no tests")


def _pairs(value: Mapping[str, Any], most: int | None) -> Tests:
    inputs, outputs = (value.get(f"{name}s", value.get(name)) for name in ("input", "output"))
    if not (isinstance(inputs, Sequence) and isinstance(outputs, Sequence) and inputs and len(inputs) == len(outputs)):
        raise ValueError(f"{dict(value)!r:.60} has not as many inputs as outputs")
    if not (name := value.get("fn_name")):
        return ScriptTests(*(tuple(_whole(each) for each in part[:most]) for part in (inputs, outputs)))
    calls = [f"({name} if {name!r} in globals() else Solution().{name})(*{_parsed(each)!r})" for each in inputs[:most]]
    found = [ValueCheck(call, _parsed(output), loose=True) for call, output in zip(calls, outputs, strict=False)]
    return LibraryTests("", tuple(found))


def _whole(text: Any) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _parsed(value: Any) -> Any:
    """Arguments or a result; some data sets write them as JSON, arguments one a line."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _asserts(texts: Sequence[str], setup: str) -> LibraryTests:
    try:
        checks = [_checked(text, setup) for text in texts]
    except SyntaxError as error:
        raise ValueError(f"a test is no Python: {error}") from error
    here = tuple(check for check in checks if not isinstance(check, AssertApart))
    return LibraryTests(setup, here, tuple(check for check in checks if isinstance(check, AssertApart)))


def _checked(text: str, setup: str) -> ValueCheck | StatementCheck | AssertApart:
    """An assert of the kind `f(x) == literal` is compared here; others run apart, or else where the code is."""
    tree = ast.parse(text)
    match tree.body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]))]:
            try:
                return ValueCheck(ast.unparse(left), ast.literal_eval(right))
            except ValueError:
                pass
    return apart(tree, setup) or StatementCheck(_guarded(tree))


def _function(test: str, name: str) -> FunctionTest:
    """HumanEval's form: `test` defines `check`, which is called with the function."""
    try:
        ast.parse(test)
    except SyntaxError as error:
        raise ValueError(f"the column `test` is no Python: {error}") from error
    return FunctionTest(test, name)


def _guarded(tree: ast.Module) -> str:
    """Source in which both sides of `==` are Python's own values: an object that equals everything does not pass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and all(isinstance(each, ast.Eq) for each in node.ops):
            node.left = _plain(node.left)
            node.comparators = [_plain(each) for each in node.comparators]
    return ast.unparse(ast.fix_missing_locations(tree))


def _plain(node: ast.expr) -> ast.expr:
    return ast.Call(ast.Name("plain_", ast.Load()), [node], [])


def _texts(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


# -- what is the same --------------------------------------------------------------------------------------------------


def same_text(printed: str, wanted: str) -> bool:
    """Whether a printed text is the wanted one, but for spaces and the last digits of decimals.

    Args:
        printed: What a program printed.
        wanted: What it had to print.
    """
    lines = [[line.split() for line in text.strip().splitlines()] for text in (printed, wanted)]
    if [len(line) for line in lines[0]] != [len(line) for line in lines[1]]:
        return False
    return all(_same_word(*pair) for pair in zip(_words(lines[0]), _words(lines[1]), strict=True))


def _words(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in lines:
        yield from line


def _same_word(printed: str, wanted: str) -> bool:
    if printed == wanted or "." not in wanted:
        return printed == wanted
    try:
        return math.isclose(float(printed), float(wanted), rel_tol=1e-6, abs_tol=1e-6)
    except ValueError:
        return False


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _only(value: Any) -> list[Any]:
    return [_listed(value[0])] if isinstance(value, list) and len(value) == 1 else []
