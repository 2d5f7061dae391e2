"""Converts the arguments of another trainer to our configuration, and lists what it could not carry."""

from __future__ import annotations

from collections.abc import Mapping

from saerl_lightning.migration.arguments import Given, Trainer
from saerl_lightning.migration.draft import Draft
from saerl_lightning.migration.references import variable


def convert(trainer: Trainer, values: Mapping[str, object], processes: int = 1) -> Draft:
    """Converts arguments.

    Args:
        trainer: Trainer whose arguments they are.
        values: Arguments by name.
        processes: Number of processes that the file was run with.

    Raises:
        InputError: naming the argument whose value can't be converted.
    """
    given = Given(trainer, values, processes)
    draft = Draft(given)
    for name, value in values.items():
        if not _kept(trainer, draft, name, value):
            given.values = {each: kept for each, kept in given.values.items() if each != name}
    done = set()
    for argument in trainer.table:
        if argument.group:
            if argument.group not in done:
                done.add(argument.group)
                trainer.conversions[argument.group](given, draft)
        elif argument.ours and (argument.implied or argument.name in given) and given[argument.name] is not None:
            draft.put(argument.ours, given[argument.name], argument.name)
    return draft


def _kept(trainer: Trainer, draft: Draft, name: str, value: object) -> bool:
    """Whether an argument of the file can be read; else, and where it has no counterpart, records why."""
    argument, usual = trainer.find(name), trainer.is_default(name, value, draft.given.values)
    if argument is None:
        draft.lose(name, f"{trainer.suggestion(name)}{trainer.title} {trainer.version} has no such argument")
    elif usual:
        return argument.implied
    elif unread := variable(value):
        flag = f", or --{argument.ours} VALUE" * (argument.ours in ("model.policy.path", "data.train", "run_dir"))
        stands = "; the default stands" * (argument.default is not None)
        draft.lose(name, f"write its value in place of {unread[:120]!r}{flag}: variables are not read{stands}")
        return False
    elif not argument.ours and value is not None:
        draft.lose(name, argument.how)
    return True


def listing(draft: Draft) -> str:
    """Returns what could not be carried, names that there are not first and then a line for each reason, and the notes."""
    trainer = draft.given.trainer
    reasons: dict[str, list[str]] = {}
    for name, why in sorted(draft.lost.items(), key=lambda each: trainer.find(each[0]) is not None):
        reasons.setdefault(why, []).append(name)
    lines = [f"  {_folded(trainer, names)}: {why}" for why, names in reasons.items()]
    head = f"not carried ({len(draft.lost)}):" if lines else "everything was carried"
    first = [f"reward not carried: {draft.other_reward}"] if draft.other_reward else []
    return "\n".join([*first, head, *lines, *(f"note: {each}" for each in draft.notes)])


def _folded(trainer: Trainer, names: list[str]) -> str:
    """Returns names; several below one part of a trainer as the part with its first three."""
    parts: dict[str, list[str]] = {}
    for name in names:
        argument = trainer.find(name)
        parts.setdefault(argument.name if argument else name, []).append(name)
    said = []
    for part, below in parts.items():
        short = ", ".join(name.removeprefix(part[:-1]) for name in below[:3])
        rest = f" and {len(below) - 3} more" if len(below) > 3 else ""
        said.append(below[0] if len(below) == 1 else f"{part} ({short}{rest})")
    return ", ".join(said)
