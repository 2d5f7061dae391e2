"""The record of a run, `run.json` in its folder: written atomically, and derived from the run if missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

STATES: Mapping[str, State] = {state: state for state in get_args(State)}


@dataclass(frozen=True)
class RunRecord:
    """State, command, time and costs of a run.

    Args:
        arm: Name of the arm.
        seed: Seed of the run.
        state: State of the run: waiting, running, stopped, finished or failed.
        command: Command line that started the run.
        started: Time of the first start, in ISO format.
        seconds: Wall-clock seconds over all attempts.
        exit: Exit code of the last attempt; null if there is none.
        error: Last lines of the log if the run failed.
        costs: Seconds by phase and numbers of tokens.
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
        """Replaces the record in the run's folder; if the disk is full, the old one stays."""
        write_whole(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path, arm: str, seed: int, spec: StudySpec) -> RunRecord:
    """Reads a run's record, or derives it from the run's files, since a cluster's scheduler writes no record.

    Args:
        folder: Folder of the run; it need not exist.
        arm: Name of the arm.
        seed: Seed of the run.
        spec: Study, whose budget tells whether the run is finished.
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
    return record if record.state in STATES else None


def reached(folder: Path, spec: StudySpec) -> bool:
    """Whether a run has its last checkpoint, has reached the budget, and has logged its last validation."""
    steps, validated = steps_done(folder)[0], curve(folder, spec.metric)
    return spent(folder, spec) and last_checkpoint(folder).is_file() and (not validated or validated[-1][0] == steps)


def spent(folder: Path, spec: StudySpec) -> bool:
    """Whether the run's steps have reached the budget."""
    steps, tokens = steps_done(folder)
    if spec.budget.steps is not None:
        return steps >= spec.budget.steps
    return spec.budget.generated_tokens is not None and round(tokens) >= spec.budget.generated_tokens


def last_checkpoint(folder: Path) -> Path:
    """Path of the checkpoint from which a run resumes."""
    return folder / "checkpoints" / "last.ckpt"


def now() -> str:
    """Present time in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
