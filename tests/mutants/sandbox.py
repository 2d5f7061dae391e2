"""Runs a module's tests against a changed module, in a fork of a process that has imported everything else.

The changed file lies in a copy of the repository, so the work tree is never touched. Importing torch, Lightning and
transformers takes longer than most modules' tests: the parent does it once, and each fork imports the package alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

COPIED = ("saerl_lightning", "tests", "configs", "benchmarks", "docs", "main.py", "pyproject.toml", "README.md")
# What the tests import beside the package; none of them may import the package itself.
IMPORTED = (
    *("torch", "torch._dynamo", "lightning.pytorch.cli", "torchmetrics", "jsonargparse", "peft", "lightgbm"),
    *(
        "transformers.models.auto",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2",
    ),
    *(
        "transformers.models.qwen3.modeling_qwen3",
        "sklearn.linear_model",
        "sklearn.cluster",
        "scipy.sparse",
        "scipy.stats",
    ),
    *("hypothesis.strategies", "jaxtyping", "beartype", "pytest", "pyarrow.parquet", "pandas", "reasoning_gym"),
    *("math_verify", "sympy", "yaml", "pydantic", "plotly.graph_objects", "jinja2", "rich"),
)


class Sandbox:
    """A copy of the repository in which one file at a time is another.

    Args:
        root: the repository.
        folder: an empty folder for the copy.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder

    def open(self) -> None:
        """Copies the files and imports what they need."""
        leave = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            source, target = self.root / name, self.folder / name
            shutil.copytree(source, target, ignore=leave) if source.is_dir() else shutil.copy2(source, target)
        for name in ("models", ".venv"):
            if (self.root / name).exists():
                (self.folder / name).symlink_to((self.root / name).resolve())
        os.environ |= {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        sys.path[:] = [str(self.folder), *(path for path in sys.path if Path(path or ".").resolve() != self.root)]
        for name in IMPORTED:
            importlib.import_module(name)
        os.chdir(self.folder)

    def run(self, tests: Sequence[str], limit_s: float, write_bytecode: bool = False) -> tuple[int | None, float]:
        """Runs pytest on some tests until the first that fails.

        Returns:
            pytest's exit code, None where it took more than `limit_s`, and the seconds it took.
        """
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _test(tests, self.folder, write_bytecode)
        while time.monotonic() - began < limit_s:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), time.monotonic() - began
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, time.monotonic() - began

    @contextlib.contextmanager
    def changed(self, module: str, source: str) -> Iterator[None]:
        """Puts another source in place of a module's, for a while."""
        path = self.folder / module
        original = path.read_text()
        path.write_text(source)
        stamp = time.time_ns() + 10**10  # no compiled file of the original has this time
        os.utime(path, ns=(stamp, stamp))
        try:
            yield
        finally:
            path.write_text(original)
            shutil.copystat(self.root / module, path)


def _test(tests: Sequence[str], folder: Path, write_bytecode: bool) -> None:
    """The fork's life; it never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        sys.dont_write_bytecode = not write_bytecode
        log = os.open(folder / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        plain = [
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-x",
            "-q",
            "-m",
            "not slow and not vllm and not real",
        ]
        code = int(pytest.main([*plain, f"--basetemp={folder / 'tmp'}", *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
