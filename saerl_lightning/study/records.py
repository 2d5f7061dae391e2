"""Records of finished runs, one small file each, that a repository can hold: `DIR/STUDY/ARM/seed-N.json`.

A record has the numbers that reports and gates are computed from, and what tells whether it is this run's: a digest of
the run's settings. It has no weights, no completions, no path and no name of a machine or user. A run whose record stands
there counts as done, so that a study goes on on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, write_whole
from saerl_lightning.study.execution import LOG, data_warnings
from saerl_lightning.study.folder import Resolved, read_about, settings
from saerl_lightning.study.questions import Key
from saerl_lightning.study.report.numbers import RunNumbers, read_run_numbers
from saerl_lightning.study.results import TAKEN, StudyResults, run_folder
from saerl_lightning.study.run_record import RunRecord, read_record
from saerl_lightning.study.software import software
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import stages_used

PATH = re.compile(r"(?<![\w.])[/~][^\s'\"():,;]*/[^\s'\"():,;]+")  # of a file, in a sentence


@dataclass(frozen=True)
class Records:
    """The records of one study in a folder that may hold those of several.

    Args:
        spec: Study whose runs are recorded.
        root: Folder of the study, with the runs' own folders.
        folder: Folder of all records.
        digests: Digest of each run's settings.
    """

    spec: StudySpec
    root: Path
    folder: Path
    digests: Mapping[Key, str]

    @classmethod
    def open(cls, spec: StudySpec, root: Path, arms: Mapping[str, Resolved], folder: Path) -> Records:
        """Reads and checks every record of the study; writes nothing.

        Args:
            spec: Study whose runs are recorded.
            root: Folder of the study.
            arms: Full configuration of each arm.
            folder: Folder of all records; it need not exist.

        Raises:
            InputError: naming the first record that is broken or of a run with other settings.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--records '{folder}' is a file; name a folder")
        keys = [(arm, seed) for seed in spec.seeds for arm in spec.arms]
        found = cls(spec, root, folder, {key: run_digest(spec, root, arms[key[0]], *key) for key in keys})
        for key in keys:
            found.read(key)
        return found

    def place(self, key: Key) -> Path:
        """Path of a run's record, which need not exist."""
        return self.folder / self.spec.name / key[0] / f"seed-{key[1]}.json"

    def read(self, key: Key) -> dict[str, Any] | None:
        """Reads the record of a run; None if there is none.

        Raises:
            InputError: if it is broken, or of a run with other settings.
        """
        place = self.place(key)
        if not place.is_file():
            return None
        given = _read(place, key)
        if given["digest"] != self.digests[key]:
            raise InputError(
                f"the record '{place}' is of a run with other settings (configs, flags, budget, stages' commands or "
                f"defaults: its digest is {given['digest']}, this run's {self.digests[key]}); give the changed arm a new "
                "name, name another folder by --records, or delete the record, and the run is made again"
            )
        return given

    def exchange(self) -> None:
        """Takes every run whose record stands there, and records every run that is finished here."""
        for key in self.digests:
            self.take(key)
        results = StudyResults.read(self.root)
        for run in results.runs:
            if run.state == "finished" and not run.recorded:
                self._write(results, (run.arm, run.seed), {}, read_about(self.root).get("software", []))

    def take(self, key: Key) -> None:
        """Puts the record of a run into the run's folder, where it counts as finished; one that finished here stays so."""
        folder = run_folder(self.root, *key)
        if read_record(folder, *key, self.spec).state == "finished" or (given := self.read(key)) is None:
            return
        run = RunNumbers.of(given)
        write_whole(folder / LOG, "".join(f"warning: {said}\n" for said in given["warnings"]))
        write_whole(folder / TAKEN, _text(given))
        RunRecord(*key, state="finished", seconds=run.seconds, exit=0, costs=dict(run.costs)).write(folder)

    def write(self, ended: RunRecord) -> RunRecord:
        """Records a run that has just finished on this machine; a record that stands there stays.

        Returns:
            What was given; it is failed if the record could not be written, and the next call tries that again.
        """
        if ended.state != "finished":
            return ended
        try:
            self._write(StudyResults.read(self.root), (ended.arm, ended.seed), machine(), [software()])
        except (InputError, OSError) as error:
            return replace(ended, state="failed", error=f"it finished, and its record was not written: {error}")
        return ended

    def _write(
        self, results: StudyResults, key: Key, on: Mapping[str, Any], versions: Sequence[Mapping[str, str]]
    ) -> None:
        if self.read(key) is not None:
            return
        log = run_folder(self.root, *key) / LOG
        about = {
            "digest": self.digests[key],
            "machine": dict(on),
            "software": list(versions),
            "warnings": [PATH.sub("…", said) for said in data_warnings(log).values()] if log.is_file() else [],
        }
        write_whole(self.place(key), _text({**about, **read_run_numbers(results, *key).recorded()}))


def run_digest(spec: StudySpec, root: Path, config: Resolved, arm: str, seed: int) -> str:
    """Computes a digest of what a run's numbers depend on: its settings, stages, budget and seed; not of versions.

    Args:
        spec: Study of the run.
        root: Folder of the study, in place of which the configuration has `{study}`.
        config: Full configuration of the arm.
        arm: Name of the arm.
        seed: Seed of the run.
    """
    # A short root such as "out" may also stand in other words, where the configuration has `{study}` too. The digest must
    # not depend on the root's name.
    given = json.dumps(sorted(settings(config)), sort_keys=True).replace("{study}", str(root))
    written = re.sub(rf'(?<![\w./-]){re.escape(str(root))}(?=[/"])', "{study}", given)
    stages = [[stage.name, stage.makes, stage.run] for stage in stages_used(spec, arm)]
    parts = [written, stages, asdict(spec.budget), sorted(spec.share), spec.metric, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Describes the kind of this machine, without its name: system, cores, GPU."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), **gpu}


def seeds_from_records(results: StudyResults) -> set[int]:
    """Seeds of which every run came from a record, so that nothing needs their shared products."""
    return set(results.spec.seeds) - {run.seed for run in results.runs if not run.recorded}


def _read(place: Path, key: Key) -> dict[str, Any]:
    try:
        given = read_json(place, "the record")
        run = RunNumbers.of(given)
        named = [given["digest"], *given["warnings"], *(text for each in given["software"] for text in each.values())]
        if run.key != key or run.state != "finished" or not all(isinstance(text, str) for text in named):
            raise ValueError(f"it says {run.arm}, seed {run.seed}, {run.state}")
        return {**given, "machine": dict(given["machine"])}
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"the record '{place}' is broken ({said}); restore it, or delete it, and the run is made again"
        ) from error


def _text(record: Mapping[str, Any]) -> str:
    """JSON with one line for each evaluation and each question, so that changes are seen line by line."""
    parts = []
    for name, value in record.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in value)
            parts.append(f' "{name}": [\n{rows}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
