"""Which asserts can run in another process than the code that they check: those whose calls take and give literals."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable
from dataclasses import dataclass

KINDS = (str, bytes, int, float, complex, list, tuple, dict, set, frozenset)  # that have literals
METHODS = frozenset(name for kind in KINDS for name in dir(kind) if not name.startswith("_"))
# Builtins whose results have literals, so that they may stand among the arguments of a call.
LITERAL = {kind.__name__ for kind in KINDS} | {
    "bool",
    "len",
    "sum",
    "min",
    "max",
    "abs",
    "sorted",
    "round",
    "chr",
    "ord",
}
# Builtins that ask what a value is, where only what it says goes between processes.
ASKING = {"type", "callable", "hasattr", "getattr", "setattr", "delattr", "vars", "dir", "id", "next", "iter"}
ASKING |= {"eval", "exec", "globals", "locals", "super"}


@dataclass(frozen=True)
class AssertApart:
    """An assert that runs apart from the code.

    Args:
        code: Python of the assert, behind the imports that it needs.
        calls: Names of the functions that the code must define.
    """

    code: str
    calls: tuple[str, ...]


def apart(tree: ast.Module, setup: str) -> AssertApart | None:
    """Returns an assert as it can run in another process; None if it needs the objects that the code makes.

    Args:
        tree: Syntax tree of the test.
        setup: Statements that run before it.
    """
    imported = _imported(setup)
    if imported is None or [type(each) for each in tree.body] != [ast.Assert]:
        return None
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.Lambda | ast.NamedExpr | ast.Yield | ast.YieldFrom | ast.Await) for node in nodes):
        return None
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    uses = [node.id for node in nodes if isinstance(node, ast.Name)]
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    unknown = set(uses) - bound - imported - vars(builtins).keys()
    modules = unknown & sys.stdlib_module_names - set(called)
    calls = unknown - modules
    plain = all(uses.count(name) == called.count(name) for name in calls) and not ASKING & set(uses)
    if not calls or not plain or not _literal(nodes, calls, bound) or not _known(nodes, imported | modules):
        return None
    lines = [setup, *(f"import {name}" for name in sorted(modules)), ast.unparse(tree)]
    return AssertApart("\n".join(lines), tuple(sorted(calls)))


def _imported(setup: str) -> set[str] | None:
    """Names that a setup imports; None if it does more than that."""
    names: set[str] = set()
    for line in ast.parse(setup).body:
        if not isinstance(line, ast.Import | ast.ImportFrom) or any(each.name == "*" for each in line.names):
            return None
        names |= {each.asname or each.name.split(".")[0] for each in line.names}
    return names


def _literal(nodes: Iterable[ast.AST], calls: set[str], bound: set[str]) -> bool:
    """Whether all arguments of the code's functions have literals."""
    for call in nodes:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in calls:
            for given in (*call.args, *(each.value for each in call.keywords)):
                inside = list(ast.walk(given))
                names = {node.id for node in inside if isinstance(node, ast.Name)}
                if (
                    any(isinstance(node, ast.GeneratorExp | ast.Attribute) for node in inside)
                    or names - calls - bound - LITERAL
                ):
                    return False
    return True


def _known(nodes: Iterable[ast.AST], modules: set[str]) -> bool:
    """Whether all attributes are those of modules, or methods of values that have literals."""
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    return all(node.attr in METHODS or (_root(node) in modules) for node in attributes)


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
