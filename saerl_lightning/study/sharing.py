"""Which arm would have had to make what: the shared stages that an arm uses, for an honest price of each. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saerl_lightning.study.luck import label
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import Stage, StudySpec


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
