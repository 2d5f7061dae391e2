"""Converts the arguments of another trainer to our configuration, and lists what it could not carry."""

from __future__ import annotations

from collections.abc import Mapping

from saerl_lightning.errors import did_you_mean
from saerl_lightning.migration.arguments import Given, Trainer
from saerl_lightning.migration.draft import Draft


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
        argument = trainer.find(name)
        if argument is None:
            near = did_you_mean(name, [each.name for each in trainer.table])
            draft.lose(name, f"not here, because {trainer.title} {trainer.version} has no such argument{near}")
        elif isinstance(value, str) and "$" in value and not value.startswith(("$HOME/", "${HOME}/")):
            draft.lose(name, f"write its value in place of {value[:80]!r}: variables are not read; the default stands")
            given.values = {each: kept for each, kept in given.values.items() if each != name}
        elif not argument.ours and value is not None and value != argument.default:
            draft.lose(name, argument.how)
    done = set()
    for argument in trainer.table:
        if argument.group:
            if argument.group not in done:
                done.add(argument.group)
                trainer.conversions[argument.group](given, draft)
        elif argument.ours and (argument.implied or argument.name in given) and given[argument.name] is not None:
            draft.put(argument.ours, given[argument.name], argument.name)
    return draft


def listing(draft: Draft) -> str:
    """Returns what could not be carried, one line for each reason, and what is not quite the same."""
    reasons: dict[str, list[str]] = {}
    for name, why in draft.lost.items():
        reasons.setdefault(why, []).append(name)
    lines = [f"  {', '.join(names)}: {why}" for why, names in reasons.items()]
    head = f"not carried ({len(draft.lost)}):" if lines else "everything was carried"
    return "\n".join([head, *lines, *(f"note: {each}" for each in draft.notes)])
