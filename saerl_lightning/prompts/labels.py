"""Measured labels: an append-only JSON lines file with one line per prompt.

A line is `{"uid": ..., "pass_rate": ..., "pass_rate_se": ..., "difficulty": ..., "samples": ...}`. Files written by
hand may contain any numbers. The first line may state how the labels were measured (`{"measured": {...}}`). Lines are
only appended, so that an interrupted measurement can be resumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saerl_lightning.errors import InputError, program
from saerl_lightning.files import read_text
from saerl_lightning.prompts.table import as_float, is_whole
from saerl_lightning.records import Prompt

HEADER = "measured"
BEGIN = f'{{"{HEADER}"'.encode()  # first bytes of a file written by `LabelFile`

Labels = Mapping[str, Mapping[str, float]]  # uid -> label -> value
Setting = str | int | float | None


@dataclass(frozen=True)
class PassRate:
    """How often the policy answered a prompt correctly.

    Args:
        uid: Uid of the prompt.
        correct: Sum of the grades, each from 0 (wrong) to 1 (correct).
        samples: Number of graded completions (n).
    """

    uid: str
    correct: float
    samples: int

    def record(self) -> dict[str, str | float | None]:
        """Returns the line of the file: p = correct / n, its standard error sqrt(p (1 - p) / n), difficulty = 100 (1 - p).

        A prompt without a graded completion gets null for all three, and so no label.
        """
        n = self.samples
        if not n:
            return {"uid": self.uid, "pass_rate": None, "pass_rate_se": None, "difficulty": None, "samples": 0}
        p = self.correct / n
        error = math.sqrt(max(p * (1 - p), 0.0) / n)
        return {"uid": self.uid, "pass_rate": p, "pass_rate_se": error, "difficulty": 100 * (1 - p), "samples": n}


def read_labels(file: str) -> Labels:
    """Reads the labels of each uid. Values other than finite numbers are ignored.

    Raises:
        InputError: if the file is missing or empty, or a line is invalid, has no uid, or repeats a uid.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"labels file '{file}' does not exist; measure one with `{program()} label`, or write null")
    if path.suffix in (".csv", ".tsv", ".parquet", ".arrow"):
        raise InputError(
            f"labels file '{file}' ends in {path.suffix!r}; labels are JSON lines, "
            'one {"uid": "...", "difficulty": 40.0} a line'
        )
    labels: dict[str, Mapping[str, float]] = {}
    for number, text in enumerate(read_text(path, "the labels file").splitlines(), start=1):
        place = f"{path.name}:{number}"
        record = _object(text, place)
        if number == 1 and HEADER in record:
            continue
        uid = record.get("uid")
        if not isinstance(uid, str) or not uid or not is_whole(uid):
            raise InputError(f'{place}: no uid in {text[:80]}; write {{"uid": "...", "difficulty": 40.0}}')
        if uid in labels:
            raise InputError(f"{place}: uid '{uid}' stands here for the second time; keep one of its lines")
        values = {name: _number(value) for name, value in record.items()}
        labels[uid] = {name: value for name, value in values.items() if value is not None}
    if not labels:
        raise InputError(f"labels file '{file}' holds no label; let `{program()} label` run longer, or write null")
    return labels


def with_labels(prompts: Sequence[Prompt], labels: Labels, origin: str = "labels") -> list[Prompt]:
    """Adds labels to the prompts that they belong to. Existing labels of the same name are replaced.

    Raises:
        InputError: if no label belongs to a prompt.
    """
    known = sum(prompt.uid in labels for prompt in prompts)
    if not known:
        raise InputError(
            f"none of the {len(labels)} uids in '{origin}' (first: '{next(iter(labels))}') is among the {len(prompts)} "
            f"training prompts (first: '{prompts[0].uid}'); give the labels of these prompts"
        )
    return [replace(p, labels={**p.labels, **labels[p.uid]}) if p.uid in labels else p for p in prompts]


class LabelFile:
    """A file of measured labels, whose measurement can be resumed.

    Args:
        file: Path of the label file.
        settings: Settings of the measurement. A file that was measured with other settings is refused.
    """

    def __init__(self, file: str, settings: Mapping[str, Setting]) -> None:
        self.path = Path(file)
        self.settings = settings

    def open(self) -> set[str]:
        """Makes the file, or checks an existing one. An incomplete last line, left by an interruption, is removed.

        Returns:
            The uids that already have labels.

        Raises:
            InputError: if the file was measured with other settings, or does not hold measured labels.
        """
        if self.path.is_dir():
            raise InputError(f"'{self.path}' is a folder; name a file, e.g. labels.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._cut_torn_line() if self.path.exists() else b""
        if not whole:
            self.append([{HEADER: dict(self.settings)}])
            return set()
        first = _object(whole.splitlines()[0].decode(), f"{self.path.name}:1")
        self._require_same(first.get(HEADER))
        return set(read_labels(str(self.path))) if whole.count(b"\n") > 1 else set()

    def append(self, records: Iterable[Mapping[str, object]]) -> None:
        """Appends lines, and flushes them to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(record)) + "\n" for record in records)

    def _cut_torn_line(self) -> bytes:
        with self.path.open("r+b") as file:
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            if text[: len(BEGIN)] != BEGIN[: len(text)]:
                raise InputError(f"'{self.path}' is no file that `label` began; name another --out")
            file.truncate(len(whole))
        return whole

    def _require_same(self, measured: object) -> None:
        if not isinstance(measured, Mapping):
            raise InputError(f"'{self.path}' does not say how it was measured; name another --out")
        names = sorted({*measured, *self.settings})
        differing = [n for n in names if measured.get(n) != self.settings.get(n)]
        if differing:
            listed = "; ".join(f"{n} {measured.get(n)!r} there, {self.settings.get(n)!r} now" for n in differing)
            raise InputError(
                f"'{self.path}' was measured with other settings: {listed}; give those again to go on with it, "
                "or name another --out"
            )


def _object(text: str, place: str) -> dict[str, object]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: broken JSON ({error}): {text[:80]}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise InputError(f"{place}: JSON that nobody can read ({error}): {text[:80]}") from error
    if not isinstance(record, dict):
        raise InputError(f'{place}: {text[:80]}; write one object a line, as {{"uid": "...", "difficulty": 40.0}}')
    return record


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return as_float(value)
