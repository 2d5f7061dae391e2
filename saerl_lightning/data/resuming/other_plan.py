"""OtherPlan: refuses a checkpoint that was made with another training plan, and names the settings that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole
from saerl_lightning.ranks.settings import differing, short

# Settings of data that do not change the plan.
NOT_PLANNED = ("val", "test", "val_sampling", "val_batch_size", "signal_cache")


class OtherPlan(InputError):
    """A checkpoint that was made with another training plan.

    Args:
        plans: Digests of both plans.
        why: What differs, and what to write instead.
    """

    def __init__(self, plans: str, why: str) -> None:
        super().__init__(f"{plans}: {why}, or start a new run from its weights without --ckpt_path")
        self.plans = plans


@contextmanager
def differences_named(checkpoint: Path | None, settings: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Names the settings that differ if the checkpoint's plan is another; any refusal leaves its `config.yaml` as it was.

    Args:
        checkpoint: File to resume from; None for a new run.
        settings: Function that returns the settings of this run, as they are written to `config.yaml`.

    Raises:
        OtherPlan: with the settings that differ, if the run of the checkpoint has a `config.yaml`.
    """
    config = None if checkpoint is None else checkpoint.parent.parent / "config.yaml"
    text = config.read_text(encoding="utf-8") if config is not None and config.is_file() else None
    try:
        yield
    except InputError as error:
        if config is None or text is None:
            raise
        # Lightning writes the new settings before it reads the checkpoint.
        if config.read_text(encoding="utf-8") != text:
            write_whole(config, text)
        if not isinstance(error, OtherPlan):
            raise
        raise OtherPlan(error.plans, _why_another_plan(config, yaml.safe_load(text), settings())) from error


def _why_another_plan(config: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    was, given = (each.get("data") or {} for each in (before, now))
    told = [
        f"{name} was {short(a)} and is {short(b)}"
        for name, a, b in differing(was, given, "data")
        if name.split(".")[1] not in NOT_PLANNED
    ]
    if not told:
        named = ", ".join(f"data.{name}" for name in ("train", "labels") if given.get("init_args", {}).get(name))
        return (
            f"no setting of data differs from {config}, so what a file holds does: {named}; give the files of that run"
        )
    return f"{', '.join(told)}; give those of {config}"
