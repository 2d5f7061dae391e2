"""Which arm would have had to make what: the shared stages that an arm uses, for an honest price of each. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import Stage, StudySpec


def shared_seconds(results: StudyResults) -> dict[str, dict[str, float]]:
    """By arm, the seconds of each shared stage that it uses and that this study made.

    They are counted whole in each: alone, the arm would have had to spend them.
    """
    taken = results.stages
    return {
        arm: {stage.name: taken[stage.name] for stage in stages_used(results.spec, arm) if stage.name in taken}
        for arm in results.spec.arms
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
    waiting = [stage for stage in spec.shared if _holds(settings, _place(stage), stage.used_with)]
    while waiting:
        stage = waiting.pop()
        used.append(stage)
        commands = " ".join(stage.run)
        waiting += [each for each in spec.shared if _holds(commands, _place(each)) and each not in [*used, *waiting]]
    return [stage for stage in spec.shared if stage in used]


def _place(stage: Stage) -> str:
    return f"{{shared}}/{stage.makes}"


def _holds(text: str, *parts: str) -> bool:
    """Whether the text holds every part, and not merely a longer name that begins like it."""
    return all(re.search(re.escape(part) + r"(?![\w.-])", text) for part in parts if part)


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
