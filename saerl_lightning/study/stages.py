"""What the arms of a seed share, made before the first run: an SAE, labels, features, a cold start.

A product is whole or absent: its command lines write beside its place, and it is renamed into it when the last one ended
well.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from saerl_lightning.errors import RunStopped
from saerl_lightning.files import write_whole
from saerl_lightning.study.luck import label, makings, placed, product
from saerl_lightning.study.plan import PROGRAM
from saerl_lightning.study.processes import Executor, tail
from saerl_lightning.study.results import STAGES, StudyResults, read_stages
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


def shared_seconds(results: StudyResults) -> dict[tuple[str, int], dict[str, float]]:
    """By arm and seed, the seconds of each shared stage that the run uses and that this study made.

    They are counted whole in each: alone, the run would have had to spend them.
    """
    spec, taken = results.spec, results.stages
    used = {arm: stages_used(spec, arm) for arm in spec.arms}
    return {
        (arm, seed): {
            stage.name: taken[name]
            for stage in used[arm]
            if (name := label(stage, None if stage.name in spec.share else seed)) in taken
        }
        for arm in spec.arms
        for seed in spec.seeds
    }


def stages_used(spec: StudySpec, arm: str) -> list[Stage]:
    """The stages whose product an arm reads, and those that these needed in their turn, in the study's order.

    An arm reads what its flags name as `{shared}/<makes>`; of a flag given twice the last one counts, as on a command line.
    A stage with `used_with` needs that text too: a place for the features of any signal, given to all arms alike, is not
    read for the SAE's features by an arm without the SAE.
    """
    configs, flags = spec.arms[arm].configs, _last_flags([*spec.flags, *spec.arms[arm].flags])
    settings = " ".join([*spec.base, *configs, *flags])
    used: list[Stage] = []
    waiting = [stage for stage in spec.shared if stage.read_by(settings) and _holds(settings, stage.used_with)]
    while waiting:
        stage = waiting.pop()
        used.append(stage)
        commands = " ".join(stage.run)
        waiting += [each for each in spec.shared if each.read_by(commands) and each not in [*used, *waiting]]
    return [stage for stage in spec.shared if stage in used]


def _holds(text: str, part: str) -> bool:
    """Whether the text holds the part, and not merely a longer name that begins like it."""
    return re.search(re.escape(part) + r"(?![\w.-])", text) is not None if part else True


def _last_flags(flags: Sequence[str]) -> list[str]:
    """The flags that count, with their values: `--a=1 --a=2` is `--a=2`; configs and `--list+=` only ever add."""
    last: dict[str, str] = {}
    key = ""
    for number, word in enumerate(flags):
        if word.startswith("-"):
            name = word.partition("=")[0]
            key = f"{name}{number}" if name.endswith("+") or name in ("-c", "--config") else name
            last[key] = word
        else:
            last[key] = f"{last.get(key, '')} {word}"
    return list(last.values())
