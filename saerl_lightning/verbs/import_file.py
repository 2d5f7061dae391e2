"""`saerl import TRAINER FILE`: writes the settings of another trainer's file as a configuration of ours."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from saerl_lightning.errors import InputError, did_you_mean, program
from saerl_lightning.files import write_whole
from saerl_lightning.migration.arguments import Trainer
from saerl_lightning.migration.conversion import convert, listing
from saerl_lightning.migration.reading import dotted_arguments
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.trl_reading import trl_arguments
from saerl_lightning.migration.verl import VERL

TRAINERS: dict[str, tuple[Trainer, Callable[[str], dict[str, object]]]] = {
    "trl": (TRL, trl_arguments),
    "verl": (VERL, dotted_arguments),
}


def import_file(trainer: str, file: str, out: str | None = None, processes: int = 1) -> None:
    """Writes an overlay for configs/grpo.yaml, and prints what could not be carried.

    Args:
        trainer: Name of the trainer: trl or verl.
        file: File of its arguments; for trl also a script or the command that starts one.
        out: File to write; null takes the name of `file` with `_saerl.yaml` at its end, in the current folder.
        processes: Number of processes that the file was run with, for batch sizes that are given for each of them.

    Raises:
        InputError: if the trainer is unknown, the file can't be read or converted, or `out` exists.
    """
    if trainer not in TRAINERS:
        raise InputError(f"'{trainer[:120]}' is none of {', '.join(TRAINERS)}{did_you_mean(trainer, TRAINERS)}")
    target = Path(out or f"{Path(file).stem}_saerl.yaml")
    if target.exists() or target.is_symlink():
        raise InputError(f"'{target}' exists and is not overwritten; write --out with another name")
    other, read = TRAINERS[trainer]
    draft = convert(other, read(file), processes)
    run = f"fit -c grpo.yaml -c {shlex.quote(str(target))}"
    head = (
        f"From {other.title}'s {Path(file).name}, by saerl import; after each setting, the argument it comes from.\n"
        f"An overlay for grpo.yaml: saerl {run}\n{listing(draft)}"
    )
    write_whole(target, draft.yaml("".join(each if each.isprintable() or each == "\n" else "?" for each in head)))
    print(f"wrote {target}; look through it, then\n  {program()} {run}\n{listing(draft)}")
