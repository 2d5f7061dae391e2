"""What the arms of a seed share, made before the first run: an SAE, labels, features, a cold start.

A product is whole or absent: its command lines write beside its place, and it is renamed into it when the last one ended
well.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from saerl_lightning.errors import RunStopped
from saerl_lightning.staging import write_whole
from saerl_lightning.study.luck import label, makings, placed, product
from saerl_lightning.study.plan import PROGRAM
from saerl_lightning.study.processes import Executor, tail
from saerl_lightning.study.results import STAGES, read_stages
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
    for stage, seed in makings(spec):
        number = spec.seeds[0] if seed is None else seed
        place = product(spec, stage, number)
        if (shared / place).exists():
            continue
        say(f"making {label(stage, seed)}: {shared / place}")
        began = time.monotonic()
        _make(spec, stage, number, shared, place, executor)
        seconds = {**read_stages(root), label(stage, seed): round(time.monotonic() - began, 2)}
        write_whole(shared / STAGES, json.dumps(seconds, indent=1) + "\n")


def _make(spec: StudySpec, stage: Stage, seed: int, shared: Path, place: str, executor: Executor) -> None:
    name = place.replace("/", "-")
    scratch, log = shared / f".making-{name}", shared / f"{name}.log"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    made = scratch / "made" / Path(place).name
    made.parent.mkdir()
    places = {"{made}": str(made), "{scratch}": str(scratch), "{seed}": str(seed)}
    try:
        for line in stage.run:
            words = [placed(word, spec, str(shared), seed) for word in stage_command(line, places)]
            if code := executor.run(words, {}, log):
                raise RunStopped(f"the shared stage '{stage.name}' ended with {code} ({log}):\n{tail(log)}")
        if not made.exists():
            raise RunStopped(f"the shared stage '{stage.name}' made nothing; its commands must write to {{made}}")
        (shared / place).parent.mkdir(parents=True, exist_ok=True)
        made.rename(shared / place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def stage_command(line: str, values: Mapping[str, str]) -> list[str]:
    """A stage's line as program and arguments, with these values for these names."""
    words = shlex.split(line)
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    if words[:2] == ["python", "main.py"]:
        words = words[1:]
    if words[0] == "main.py":
        return [*PROGRAM, *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words
