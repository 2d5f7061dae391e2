"""The record of a run, `run.json` in its folder: written whole or not at all, and derived where there is none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, write_whole
from saerl_lightning.study.costs import curve, steps_done
from saerl_lightning.study.spec import StudySpec

FILE = "run.json"
State = Literal["waiting", "running", "stopped", "finished", "failed"]
"""`stopped`: the study was interrupted in the middle of it. `running`: it runs, or whoever ran it was killed."""


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Args:
        arm: its arm.
        seed: its seed.
        state: how far it is.
        command: that ran it.
        started: first start, in ISO format.
        seconds: wall-clock over all attempts.
        exit: exit code of the last attempt.
        error: last lines of its log, where it failed.
        costs: what was spent: seconds by phase, tokens.
    """

    arm: str
    seed: int
    state: State
    command: list[str] = field(default_factory=list)
    started: str = ""
    seconds: float = 0.0
    exit: int | None = None
    error: str = ""
    costs: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Replaces the record in the run's folder; a full disk leaves the old one."""
        write_whole(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path, arm: str, seed: int, spec: StudySpec) -> RunRecord:
    """Reads a run's record, or derives it from what the run wrote: a cluster's scheduler writes none.

    Args:
        folder: of the run; it need not exist.
        arm: its arm.
        seed: its seed.
        spec: the study; what reached its budget is finished, whatever became of whoever ran it.
    """
    record = _recorded(folder, arm, seed)
    if record is None:
        begun = (folder / "config.yaml").is_file()
        record = RunRecord(arm, seed, "running" if begun else "waiting")
    if record.state in ("running", "stopped") and reached(folder, spec):
        return replace(record, state="finished")
    return record


def _recorded(folder: Path, arm: str, seed: int) -> RunRecord | None:
    try:
        known = read_json(folder / FILE, "the record of a run")
        known = {name: known[name] for name in RunRecord.__dataclass_fields__ if name in known}
        record = RunRecord(**{**known, "arm": arm, "seed": seed})
    except (InputError, TypeError):
        return None
    return record if record.state in get_args(State) else None


def reached(folder: Path, spec: StudySpec) -> bool:
    """Whether a run's last checkpoint stands, its metrics reached the budget, and its last validation is among them."""
    steps, validated = steps_done(folder)[0], curve(folder, spec.metric)
    return spent(folder, spec) and last_checkpoint(folder).is_file() and (not validated or validated[-1][0] == steps)


def spent(folder: Path, spec: StudySpec) -> bool:
    """Whether the run's steps reached the budget."""
    steps, tokens = steps_done(folder)
    if spec.budget.steps is not None:
        return steps >= spec.budget.steps
    return spec.budget.generated_tokens is not None and round(tokens) >= spec.budget.generated_tokens


def last_checkpoint(folder: Path) -> Path:
    """Where a run keeps the weights it goes on from."""
    return folder / "checkpoints" / "last.ckpt"


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
