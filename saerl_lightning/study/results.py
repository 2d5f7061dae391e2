"""Reads a study's folder: its arms, its runs, their logged metrics and costs. Nothing is compared here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, read_yaml
from saerl_lightning.study import costs
from saerl_lightning.study.run_record import State, read_record
from saerl_lightning.study.spec import RANDOM_PARTS, StudySpec

if TYPE_CHECKING:
    import pandas

SPEC, RECORD, STAGES, QUESTIONS = "study.yaml", "study.json", "stages.json", "questions.parquet"
TAKEN = "record.json"  # in the folder of a run that was made elsewhere: its numbers
COLUMNS = ["set", "step", "uid", "topic", "level", "accuracy"]  # of questions.parquet


@dataclass(frozen=True)
class RunResult:
    """One run of the study: an arm with a seed."""

    arm: str
    seed: int
    state: State
    folder: Path
    seconds: float = 0.0
    error: str = ""
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def recorded(self) -> bool:
        """Whether the run was made elsewhere, and its numbers came from a record."""
        return self.state == "finished" and (self.folder / TAKEN).is_file()

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Reads a logged metric by optimiser steps done; the validation before the first step is at 0."""
        return costs.curve(self.folder, metric)

    def spent(self, cost: str) -> list[tuple[int, float]]:
        """Sums a cost up to each optimiser step: "sampled_tokens", "trained_tokens", "seconds", …."""
        return costs.cumulative(self.folder, cost)

    def questions(self) -> pandas.DataFrame:
        """Reads the accuracy of every question at every evaluation, in columns `COLUMNS`; empty if not written.

        `step` counts optimiser steps done, as `curve` does.
        """
        import pandas

        path = self.folder / QUESTIONS
        return pandas.read_parquet(path) if path.is_file() else pandas.DataFrame({name: [] for name in COLUMNS})


@dataclass(frozen=True)
class StudyResults:
    """A study and all its runs, including failed ones and those that have not begun.

    Args:
        spec: Study that was run.
        runs: Every arm with every seed, in the order in which they are run.
        folder: Folder of the study.
        stages: Seconds that each shared stage took, by name.
    """

    spec: StudySpec
    runs: list[RunResult]
    folder: Path
    stages: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> StudyResults:
        """Reads a study's folder.

        Raises:
            InputError: if it is not a study's folder.
        """
        root = Path(folder)
        if not (root / SPEC).is_file():
            raise InputError(
                f"'{folder}' holds no {SPEC}, so it is no study's folder; name what `study run --out` wrote"
            )
        spec = read_spec(root)
        runs = [read_run(root, spec, arm, seed) for seed in spec.seeds for arm in spec.arms]
        return cls(spec, runs, root, read_stages(root))

    def finished(self, arm: str) -> list[RunResult]:
        """Finished runs of an arm, in the order of the seeds."""
        return [run for run in self.runs if run.arm == arm and run.state == "finished"]

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return all(run.state == "finished" for run in self.runs)


def read_spec(folder: Path) -> StudySpec:
    """Reads the study of a folder that it has run in, or that it was published to.

    In version 0.1 the seeds had all in common but the order and the sampling, and the study's file did not say so; here
    `share` names it. The file's `report`, which nothing reads any more, is left out.

    Raises:
        InputError: if the file is damaged or describes no study.
    """
    given = read_yaml(folder / SPEC, "the study")
    if isinstance(given, dict) and "share" not in given and _is_of_0_1(folder):
        stages = [stage["name"] for stage in given.get("shared") or [] if isinstance(stage, dict) and "name" in stage]
        given = {key: value for key, value in given.items() if key != "report"}
        given["share"] = [*stages, *(part for part in RANDOM_PARTS if part != "order")]
    return StudySpec.of(given, folder / SPEC)


def _is_of_0_1(folder: Path) -> bool:
    """Whether the study's record has no software, which later versions note."""
    try:
        return "software" not in read_json(folder / RECORD, "the record")
    except (InputError, TypeError):
        return False


def read_run(root: Path, spec: StudySpec, arm: str, seed: int) -> RunResult:
    """Reads one run's record; missing costs are read from its logged metrics."""
    folder = run_folder(root, arm, seed)
    record = read_record(folder, arm, seed, spec)
    spent = {**costs.run_costs(folder), **record.costs} if record.state != "waiting" else {}
    seconds = record.seconds or sum(value for name, value in spent.items() if name.endswith("_s"))
    return RunResult(arm, seed, record.state, folder, seconds, record.error, spent)


def run_folder(root: Path, arm: str, seed: int) -> Path:
    """Folder of a run of the study."""
    return root / arm / f"seed-{seed}"


def read_stages(root: Path) -> dict[str, float]:
    """Reads the seconds that each shared stage took; stages that this study did not make are missing.

    Raises:
        InputError: if the file is damaged.
    """
    path = root / "shared" / STAGES
    try:
        seconds = read_json(path, "the record of the stages").items() if path.is_file() else ()
        return {str(name): float(taken) for name, taken in seconds}
    except (InputError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is torn; delete it, and the report leaves out what its stages cost") from error
