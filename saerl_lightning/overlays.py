"""What a later configuration file takes away from an earlier one without saying so: its callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saerl_lightning.text_files import read_yaml


def dropped_callbacks(files: Iterable[Path]) -> list[str]:
    """Says, a sentence a file, which callbacks of the files before it a file replaces by a list of its own.

    Args:
        files: given with `-c`, in their order; each was read and parsed before.
    """
    said, held, holder = [], [], ""
    for file in files:
        section = (read_yaml(file, "the configuration") or {}).get("trainer") or {}
        if "callbacks" in section:
            own = _names(section["callbacks"])
            if lost := [name for name in held if name not in own]:
                said.append(
                    f"{file}: trainer.callbacks replaces the list of {holder}, so {', '.join(lost)} "
                    f"{'is' if len(lost) == 1 else 'are'} off; write callbacks+ to add to it"
                )
            held, holder = own, str(file)
        added = _names(section.get("callbacks+"))
        held, holder = held + added, holder or str(file)
    return said


def _names(callbacks: Any) -> list[str]:
    """Class names without their modules, of one callback or of a list."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    paths = [each.get("class_path", "") if isinstance(each, dict) else each for each in listed if each]
    return [str(path).rpartition(".")[2] for path in paths]
