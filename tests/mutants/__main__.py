"""Mutation tests: `python -m tests.mutants`, which `make mutants` calls. Writes `docs/mutants.md`.

cosmic-ray changes the code, one small thing at a time; the tests that `modules.toml` names for the module run against it.
A change that no test notices is a survivor: a test is missing, or the change makes no difference (`equivalent.toml` lists
those, with the reason). cosmic-ray's own runner starts a process for each, which costs ten seconds of imports; `sandbox`
forks instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.generate import Mutant, sample
from tests.mutants.page import Verdict, page, summary
from tests.mutants.record import Record
from tests.mutants.sandbox import Sandbox

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "mutants.md"


def main() -> int:
    """Draws the mutants, lets two processes judge them, and writes the page."""
    options = _options()
    modules = {module: tests for module, tests in _modules().items() if _chosen(module, options.only)}
    if options.judge:
        return _judge(modules, [Mutant(**fields) for fields in json.load(sys.stdin)])
    equivalent = _equivalent()
    order = {module: place for place, module in enumerate(modules)}
    record = Record(options.record, ROOT, modules)
    drawn = list(sample(ROOT, list(modules), options.count, options.seed))
    tested = [mutant for mutant in drawn if mutant.key not in equivalent]
    left = sorted((each for each in tested if record.outcome(each) is None), key=lambda mutant: order[mutant.module])
    print(f"{len(drawn)} mutants drawn, {len(left)} to judge; verdicts go to {options.record}", file=sys.stderr)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(
            pool.map(lambda share: _started(share, record), [left[job :: options.jobs] for job in range(options.jobs)])
        )
    verdicts = [
        Verdict(
            mutant,
            equivalent.get(mutant.key),
            "equivalent" if mutant.key in equivalent else str(record.outcome(mutant)),
        )
        for mutant in drawn
    ]
    print(summary(verdicts))
    for verdict in verdicts:
        if verdict.outcome == "survived":
            print(
                f"{verdict.mutant.module}:{verdict.mutant.line}\n  - {verdict.mutant.before}\n  + {verdict.mutant.after}"
            )
    if options.only == "*" and not options.no_page:
        PAGE.write_text(page(verdicts, options.seed))
    return 0


def _chosen(module: str, patterns: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns.split(","))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--only",
        default="*",
        help="patterns of module paths, separated by commas; others are left out, and no page is written",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that judge at once")
    parser.add_argument(
        "--record",
        type=Path,
        default=ROOT / "runs/mutants.jsonl",
        help="verdicts so far; a stopped run goes on from them",
    )
    parser.add_argument("--no_page", action="store_true", help="print, and leave docs/mutants.md as it is")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(mutants: Sequence[Mutant], record: Record) -> None:
    """Starts a process that judges some mutants, and writes down what it finds of each."""
    if not mutants:
        return
    command = [sys.executable, "-m", "tests.mutants", "--judge"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as judge:
        assert judge.stdin is not None and judge.stdout is not None
        judge.stdin.write(json.dumps([asdict(mutant) for mutant in mutants]))
        judge.stdin.close()
        for mutant, line in zip(mutants, judge.stdout, strict=False):
            record.add(mutant, line.strip())
            print(f"{mutant.module}:{mutant.line} {line.strip()}", file=sys.stderr, flush=True)
    if judge.returncode:
        raise SystemExit(f"a process that judges mutants ended with {judge.returncode}")


def _judge(modules: dict[str, list[str]], mutants: Sequence[Mutant]) -> int:
    """Judges mutants in their order; prints a line with what came of each."""
    verdicts, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        sandbox = Sandbox(ROOT, Path(folder))
        sandbox.open()
        unchanged: dict[tuple[str, ...], float] = {}  # seconds that tests take on the code as it is
        for mutant in mutants:
            tests = tuple(modules[mutant.module])
            if tests not in unchanged:
                unchanged[tests] = _seconds(sandbox, tests)
            with sandbox.changed(mutant.module, mutant.source):
                code, _ = sandbox.run(tests, 3 * unchanged[tests] + 20)
            outcome = "survived" if code == 0 else "timed out" if code is None else "killed"
            print(outcome, file=verdicts, flush=True)
    return 0


def _seconds(sandbox: Sandbox, tests: Sequence[str]) -> float:
    """How long some tests take on the code as it is, compiling it included."""
    code, seconds = sandbox.run(tests, 600, write_bytecode=True)
    if code != 0:
        print(Path("pytest.log").read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(tests)} fail without any change (pytest ended with {code})")
    return seconds


def _modules() -> dict[str, list[str]]:
    """The tests of each module."""
    groups = tomllib.loads((HERE / "modules.toml").read_text())["group"]
    return {f"saerl_lightning/{module}.py": group["tests"] for group in groups for module in group["modules"]}


def _equivalent() -> dict[tuple[str, str, str], str]:
    """Reasons why a change makes no difference."""
    listed = tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
    return {(each["module"], each["before"], each["after"]): each["reason"] for each in listed}


if __name__ == "__main__":
    sys.exit(main())
