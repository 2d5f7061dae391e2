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


def test_functions_are_short():
    middle, high, largest = quantiles("functions", functions(FILES))
    assert middle <= 10 and high <= 40 and largest <= 60


def test_folders_can_be_looked_over():
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in FILES)
    print(f"folders: {len(counts)}, fullest {counts.most_common(1)[0]}")
    assert max(counts.values()) <= 20


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
