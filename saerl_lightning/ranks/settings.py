"""Settings of a run: written to its folder, equal on all processes, and compared with those of another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole
from saerl_lightning.ranks.collectives import gather_objects

LONGEST = 80  # characters of a value that are shown


class RunConfig(SaveConfigCallback):
    """Writes the run's full configuration to its folder and to its loggers, after all processes were found to have it."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Compares the configurations of all processes, which may have been started one by one; then writes it.

        Raises:
            InputError: on every process, with the settings that differ.
        """
        require_same(self.parser.dump(self.config, skip_unset=False), trainer.world_size)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Writes the configuration; Lightning calls it on rank 0 when the run begins."""
        text = self.parser.dump(self.config, skip_unset=False)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(text)})
        # An evaluation must not overwrite the configuration of the training.
        name = "config.yaml" if stage == "fit" else f"config-{stage}.yaml"
        write_whole(Path(trainer.default_root_dir, name), text)


def require_same(settings: str, ranks: int) -> None:
    """Refuses processes with different settings, which would wait for each other or train on something else.

    Args:
        settings: Settings of this process as YAML.
        ranks: Number of processes; all must call it.

    Raises:
        InputError: on every process, with the settings that differ.
    """
    first, *others = gather_objects(settings, ranks)
    for rank, other in enumerate(others, 1):
        if other != first:
            error = InputError(
                f"process {rank} has other settings than process 0: {_told(first, other)}; start all alike"
            )
            error.everywhere = True
            raise error


def _told(first: str, other: str) -> str:
    found = [
        f"{key} is {short(b)} there and {short(a)} here"
        for key, a, b in differing(*map(yaml.safe_load, (first, other)))
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def differing(was: Any, given: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields each setting that differs between two configurations: its dotted name and both values."""
    if isinstance(was, dict) and isinstance(given, dict) and was.get("class_path") == given.get("class_path"):
        for name in dict.fromkeys([*was, *given]):
            inner = key if name == "init_args" else f"{key}.{name}" if key else name
            yield from differing(was.get(name), given.get(name), inner)
    elif was != given:
        yield key, was, given


def short(value: Any) -> str:
    """Shows a value of a configuration in a message: of a class only its name, and long ones cut."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    text = json.dumps(value) if isinstance(value, dict | list | bool | None) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
