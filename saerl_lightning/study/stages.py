"""Makes the products that the arms of a seed share, before the first run: an SAE, labels, features, a cold start.

A product is complete or missing: its command lines write to a scratch folder, and it is renamed to its path after the
last one succeeded.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from saerl_lightning.errors import CALLED_AS, RunStopped, program
from saerl_lightning.files import write_whole
from saerl_lightning.study.plan import PROGRAM, duration
from saerl_lightning.study.processes import Executor, tail
from saerl_lightning.study.results import STAGES, StudyResults, read_stages
from saerl_lightning.study.seeding import product_name, product_path, stage_products, with_paths_of
from saerl_lightning.study.spec import Stage, StudySpec


def make_shared(
    spec: StudySpec, root: Path, executor: Executor, say: Callable[[str], None], done: Collection[int] = ()
) -> None:
    """Makes the missing products in the study's order, and stores the seconds that each took.

    Args:
        spec: Study whose products are made.
        root: Folder of the study.
        executor: Executor that runs the command lines.
        say: Function that prints which product is being made.
        done: Seeds whose products are not needed any more, because all their runs came from records.

    Raises:
        RunStopped: if a command line failed, with the last lines of its log.
    """
    shared = root / "shared"
    for stage, seed in stage_products(spec):
        number = spec.seeds[0] if seed is None else seed
        place = product_path(spec, stage, number)
        if needless(spec, seed, done) or (shared / place).exists():
            continue
        say(f"making {product_name(stage, seed)}: {shared / place}")
        began = time.monotonic()
        _make(spec, stage, number, shared, place, executor)
        taken = time.monotonic() - began
        say(f"  made in {duration(taken)}")
        seconds = {**read_stages(root), product_name(stage, seed): round(taken, 2)}
        write_whole(shared / STAGES, json.dumps(seconds, indent=1) + "\n")


def needless(spec: StudySpec, seed: int | None, done: Collection[int]) -> bool:
    """Whether no run needs the product of a seed (null: of all seeds), because the runs of `done` came from records."""
    return {*spec.seeds} <= {*done} if seed is None else seed in done


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
            arguments = [with_paths_of(word, spec, str(shared), seed) for word in stage_command(line, places)]
            if code := executor.run(arguments, {CALLED_AS: program()}, log):
                raise RunStopped(f"the shared stage '{stage.name}' ended with {code} ({log}):\n{tail(log)}")
        if not made.exists():
            raise RunStopped(f"the shared stage '{stage.name}' made nothing; its commands must write to {{made}}")
        (shared / place).parent.mkdir(parents=True, exist_ok=True)
        made.rename(shared / place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def stage_command(line: str, values: Mapping[str, str]) -> list[str]:
    """Splits a stage's line into program and arguments, with placeholders replaced."""
    arguments = shlex.split(line)
    for name, value in values.items():
        arguments = [word.replace(name, value) for word in arguments]
    if arguments[:2] == ["python", "main.py"]:
        arguments = arguments[1:]
    if arguments[0] in ("saerl", "main.py"):
        return [*PROGRAM, *arguments[1:]]
    return [sys.executable, *arguments[1:]] if arguments[0] == "python" else arguments


def shared_seconds(results: StudyResults) -> dict[tuple[str, int], dict[str, float]]:
    """Seconds of each shared stage that a run uses and that this study made, by arm and seed.

    They count in full for each run, because a run alone would need the product too.
    """
    spec, taken = results.spec, results.stages
    used = {arm: stages_used(spec, arm) for arm in spec.arms}
    return {
        (arm, seed): {
            stage.name: taken[name]
            for stage in used[arm]
            if (name := product_name(stage, None if stage.name in spec.share else seed)) in taken
        }
        for arm in spec.arms
        for seed in spec.seeds
    }


def stages_used(spec: StudySpec, arm: str) -> list[Stage]:
    """Stages whose product an arm reads, and the stages that these need, in the study's order.

    An arm reads a product if its configs or flags name `{shared}/<makes>`. Of a repeated flag only the last one counts.
    A stage with `used_with` also needs that text: if all arms get a path for the features of any signal, only arms with
    the SAE read the SAE's features there.
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
    """Whether the text contains `part`, and not only a longer name that begins with it."""
    return re.search(re.escape(part) + r"(?![\w.-])", text) is not None if part else True


def _last_flags(flags: Sequence[str]) -> list[str]:
    """Flags that take effect, with their values: of `--a=1 --a=2` the last one; all configs and `--list+=` stay."""
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
