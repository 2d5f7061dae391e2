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
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.generate import Mutant, sample
from tests.mutants.page import Verdict, page, summary
from tests.mutants.sandbox import Sandbox

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "mutants.md"


def main() -> int:
    """Draws the mutants, lets two processes judge them, and writes the page."""
    options = _options()
    modules = {module: tests for module, tests in _modules().items() if fnmatch(module, options.only)}
    if options.judge:
        return _judge(modules, [Mutant(**fields) for fields in json.load(sys.stdin)])
    equivalent = _equivalent()
    drawn = list(sample(ROOT, list(modules), options.count, options.seed))
    tested = [mutant for mutant in drawn if mutant.key not in equivalent]
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        shares = list(pool.map(_started, [tested[job :: options.jobs] for job in range(options.jobs)]))
    outcomes = {rank: outcome for share in shares for rank, outcome in share.items()}
    verdicts = [
        Verdict(mutant, equivalent.get(mutant.key), outcomes.get(mutant.rank, "equivalent")) for mutant in drawn
    ]
    print(summary(verdicts))
    for verdict in verdicts:
        if verdict.outcome == "survived":
            print(
                f"{verdict.mutant.module}:{verdict.mutant.line}\n  - {verdict.mutant.before}\n  + {verdict.mutant.after}"
            )
    if options.only == "*" and not options.no_page:
        PAGE.write_text(page(verdicts, options.seed, (time.monotonic() - began) / 60))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--only", default="*", help="pattern of module paths; others are left out, and no page is written"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that judge at once")
    parser.add_argument("--no_page", action="store_true", help="print, and leave docs/mutants.md as it is")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(mutants: Sequence[Mutant]) -> dict[str, str]:
    """A process that judges some mutants, and what it found of each."""
    command = [sys.executable, "-m", "tests.mutants", "--judge"]
    given = json.dumps([asdict(mutant) for mutant in mutants])
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=alone, input=given, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"a process that judges mutants ended with {ended.returncode}")
    return json.loads(ended.stdout.splitlines()[-1])


def _judge(modules: dict[str, list[str]], mutants: Sequence[Mutant]) -> int:
    """Judges mutants, module by module; prints what came of them as one line of JSON."""
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        sandbox = Sandbox(ROOT, Path(folder))
        sandbox.open()
        unchanged: dict[tuple[str, ...], float] = {}  # seconds that tests take on the code as it is
        for mutant in sorted(mutants, key=lambda mutant: mutant.module):
            tests = tuple(modules[mutant.module])
            if tests not in unchanged:
                unchanged[tests] = _seconds(sandbox, tests)
            with sandbox.changed(mutant.module, mutant.source):
                code, _ = sandbox.run(tests, 3 * unchanged[tests] + 20)
            outcomes[mutant.rank] = "survived" if code == 0 else "timed out" if code is None else "killed"
            print(f"{mutant.module}:{mutant.line} {outcomes[mutant.rank]}", file=sys.stderr, flush=True)
    print(json.dumps(outcomes))
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
