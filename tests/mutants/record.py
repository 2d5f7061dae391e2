"""Verdicts so far: a run that was stopped goes on from them, and one holds until its code or its tests change."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutants.generate import Mutant


class Record:
    """A file with one line of JSON for each verdict.

    Args:
        path: the file; it is made with the first verdict.
        root: the repository.
        tests: the tests of each module, as paths relative to the repository.
    """

    def __init__(self, path: Path, root: Path, tests: Mapping[str, Sequence[str]]) -> None:
        self.path = path
        self.tests = {module: _digest(root, paths) for module, paths in tests.items()}
        self.lock = threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.outcomes: dict[str, str] = {line["key"]: line["outcome"] for line in map(json.loads, lines)}

    def outcome(self, mutant: Mutant) -> str | None:
        """What came of a mutant under the tests as they are; None for one that was not judged."""
        return self.outcomes.get(self._key(mutant))

    def add(self, mutant: Mutant, outcome: str) -> None:
        """Writes down what came of a mutant."""
        line = {"key": self._key(mutant), "module": mutant.module, "line": mutant.line, "outcome": outcome}
        with self.lock:
            self.outcomes[line["key"]] = outcome
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _key(self, mutant: Mutant) -> str:
        return hashlib.sha256(f"{mutant.source}\0{self.tests[mutant.module]}".encode()).hexdigest()[:16]


def _digest(root: Path, paths: Sequence[str]) -> str:
    """Changes with any test file under the paths."""
    files = [
        file for path in paths for file in ([root / path] if path.endswith(".py") else (root / path).rglob("*.py"))
    ]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()
