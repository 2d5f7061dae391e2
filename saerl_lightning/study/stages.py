"""What the arms share, made once before the first run: a cold start, an SAE, labels, features.

A product is whole or absent: its command lines write beside its place, and it is renamed into it when the last one ended
well.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from saerl_lightning.errors import RunStopped
from saerl_lightning.study.plan import PROGRAM
from saerl_lightning.study.processes import Executor, tail
from saerl_lightning.study.results import STAGES, read_stages
from saerl_lightning.study.run_state import write_whole
from saerl_lightning.study.spec import Stage, StudySpec


def make_shared(spec: StudySpec, root: Path, executor: Executor, say: Callable[[str], None]) -> None:
    """Makes what is missing, in the study's order, and notes the seconds each took.

    Args:
        spec: the study.
        root: its folder.
        executor: where the command lines run.
        say: told what is being made.

    Raises:
        RunStopped: if a command line failed, with the end of what it wrote.
    """
    shared = root / "shared"
    for stage in spec.shared:
        if (shared / stage.makes).exists():
            continue
        say(f"making {stage.name}: {shared / stage.makes}")
        began = time.monotonic()
        _make(stage, shared, executor)
        seconds = {**read_stages(root), stage.name: round(time.monotonic() - began, 2)}
        write_whole(shared / STAGES, json.dumps(seconds, indent=1) + "\n")


def _make(stage: Stage, shared: Path, executor: Executor) -> None:
    scratch = shared / f".making-{stage.makes.replace('/', '-')}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    made, log = scratch / "made" / Path(stage.makes).name, shared / f"{stage.makes.replace('/', '-')}.log"
    made.parent.mkdir()
    try:
        for line in stage.run:
            if code := executor.run(stage_command(line, made, scratch, shared), {}, log):
                raise RunStopped(f"the shared stage '{stage.name}' ended with {code} ({log}):\n{tail(log)}")
        if not made.exists():
            raise RunStopped(f"the shared stage '{stage.name}' made nothing; its commands must write to {{made}}")
        (shared / stage.makes).parent.mkdir(parents=True, exist_ok=True)
        made.rename(shared / stage.makes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def stage_command(line: str, made: Path, scratch: Path, shared: Path) -> list[str]:
    """A stage's line as program and arguments."""
    places = {"{made}": made, "{scratch}": scratch, "{shared}": shared}
    words = shlex.split(line)
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    if words[:2] == ["python", "main.py"]:
        words = words[1:]
    if words[0] == "main.py":
        return [*PROGRAM, *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words
