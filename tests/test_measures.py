"""The sizes of the house: `pytest -rP tests/test_measures.py` prints them."""

import ast
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from saerl_lightning.training.grpo import GRPOModule
from tests.training.conftest import data, fit, module, tiny, trainer

__all__ = ["tiny"]

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "saerl_lightning").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def functions(files: list[Path]) -> dict[str, int]:
    """Lines of every function, decorators left out."""
    return {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def quantiles(name: str, sizes: dict[str, int]) -> tuple[float, float, int]:
    values = list(sizes.values())
    middle, high, largest = float(np.median(values)), float(np.quantile(values, 0.95)), max(values)
    print(
        f"{name}: {len(values)}, median {middle:g}, p95 {high:g}, longest {largest} ({max(sizes, key=sizes.__getitem__)})"
    )
    return middle, high, largest


def test_files_are_a_noun_each():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    _, high, largest = quantiles("files", lines)
    assert largest <= 400 and high <= 300


def test_files_of_tests_are_as_short():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in TESTS}
    _, high, largest = quantiles("files of tests", lines)
    assert largest <= 400 and high <= 300


def test_functions_are_short():
    middle, high, largest = quantiles("functions", functions(FILES))
    assert middle <= 10 and high <= 40 and largest <= 60


def test_folders_can_be_looked_over():
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in FILES)
    print(f"folders: {len(counts)}, fullest {counts.most_common(1)[0]}")
    assert max(counts.values()) <= 20


def public(node: ast.AST, place: str) -> dict[str, bool]:
    """Whether each public class, function, method and property below a node has a docstring; overloads need none."""
    found: dict[str, bool] = {}
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.If | ast.Try):  # definitions that depend on what is installed
            found |= public(each, place)
        if not isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or each.name.startswith("_"):
            continue
        name = f"{place} {each.name}"
        if not any("overload" in ast.unparse(decorator) for decorator in each.decorator_list):
            found[name] = ast.get_docstring(each) is not None
        if isinstance(each, ast.ClassDef):
            found |= public(each, name)
    return found


def test_public_names_are_documented():
    """Ruff's D1 holds this too, but for what a `noqa` or `@override` exempts, and for definitions inside of an `if`."""
    found: dict[str, bool] = {}
    for file in FILES:
        tree, place = ast.parse(file.read_text()), str(file.relative_to(ROOT))
        found |= {place: ast.get_docstring(tree) is not None, **public(tree, place)}
    print(f"public names: {len(found)}, documented {sum(found.values())}")
    assert len(found) > 1000 and all(found.values()), [name for name, said in found.items() if not said]


def test_module_names_that_stand_twice_are_few():
    names = Counter(file.stem for file in FILES if file.stem != "__init__")
    repeated = {name: count for name, count in names.items() if count > 1}
    print(
        f"module names that stand twice: {len(repeated)} ({', '.join(f'{n} {c}' for n, c in sorted(repeated.items()))})"
    )
    in_a_room = Counter((file.relative_to(ROOT).parts[1], file.stem) for file in FILES if file.stem in repeated)
    assert all(count == 1 for count in in_a_room.values()), in_a_room
    assert all(count <= 3 for count in repeated.values())


def test_a_step_can_be_followed_in_one_sitting(tiny, tmp_path, monkeypatch):
    """Files of the package that a real training step runs through: sampling, grading, scoring, the update, the sync."""
    visited: set[str] = set()
    step = GRPOModule.training_step

    def watch(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT / "saerl_lightning")):
            visited.add(frame.f_code.co_filename.removeprefix(str(ROOT / "saerl_lightning")))

    def watched(self, *given):
        sys.setprofile(watch)
        try:
            return step(self, *given)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(GRPOModule, "training_step", watched)
    fit(module(tiny), data(), trainer(tmp_path, 1))
    print(f"a training step visits {len(visited)} files")
    assert 20 < len(visited) <= 32, sorted(visited)


def test_a_class_name_means_one_thing():
    """No public class is defined twice in the package: a name that two files give says nothing to who reads a third."""
    defined: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert len(defined) > 200
    assert not {name: files for name, files in defined.items() if len(files) > 1}
