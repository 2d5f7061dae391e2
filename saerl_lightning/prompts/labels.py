"""Measured labels: a file beside the prompts, one line a prompt, that only ever grows.

A line is `{"uid": ..., "pass_rate": ..., "pass_rate_se": ..., "difficulty": ..., "samples": ...}`; whoever writes a file by
hand may put any numbers there. The first line may say how the labels were measured (`{"measured": {...}}`). A file is
appended to and never rewritten, so that a killed measurement goes on: it knows nothing of how labels are measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_text
from saerl_lightning.prompts.file import as_float, is_whole
from saerl_lightning.records import Prompt

HEADER = "measured"
BEGIN = f'{{"{HEADER}"'.encode()  # of a file that was begun here

Labels = Mapping[str, Mapping[str, float]]  # uid -> label -> value
Setting = str | int | float | None


@dataclass(frozen=True)
class PassRate:
    """How often the policy answered a prompt right.

    Args:
        uid: of the prompt.
        correct: sum of the grades, each from 0 (wrong) to 1 (right).
        samples: completions that were graded (n).
    """

    uid: str
    correct: float
    samples: int

    def record(self) -> dict[str, str | float | None]:
        """The line of the file: p = correct / n, its standard error sqrt(p (1 - p) / n), difficulty = 100 (1 - p).

        A prompt without one graded completion has null for all three, so it gets no label.
        """
        n = self.samples
        if not n:
            return {"uid": self.uid, "pass_rate": None, "pass_rate_se": None, "difficulty": None, "samples": 0}
        p = self.correct / n
        error = math.sqrt(max(p * (1 - p), 0.0) / n)
        return {"uid": self.uid, "pass_rate": p, "pass_rate_se": error, "difficulty": 100 * (1 - p), "samples": n}


def read_labels(file: str) -> Labels:
    """Reads the numbers of each uid; null, NaN and texts are no labels.

    Raises:
        InputError: if the file is missing or empty, or a line is broken, has no uid, or has one for the second time.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"labels file '{file}' does not exist; measure one with `main.py label`, or write null")
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
        raise InputError(f"labels file '{file}' holds no label; let `main.py label` run longer, or write null")
    return labels


def with_labels(prompts: Sequence[Prompt], labels: Labels, origin: str = "labels") -> list[Prompt]:
    """Adds labels to the prompts they belong to; a label that a prompt has already is replaced.

    Raises:
        InputError: if none of the labels belongs to a prompt.
    """
    known = sum(prompt.uid in labels for prompt in prompts)
    if not known:
        raise InputError(
            f"none of the {len(labels)} uids in '{origin}' (first: '{next(iter(labels))}') is among the {len(prompts)} "
            f"training prompts (first: '{prompts[0].uid}'); give the labels of these prompts"
        )
    return [replace(p, labels={**p.labels, **labels[p.uid]}) if p.uid in labels else p for p in prompts]


class LabelFile:
    """A file of measured labels that can be gone on with.

    Args:
        file: its path.
        settings: how the labels are measured; a file that was measured in another way is refused.
    """

    def __init__(self, file: str, settings: Mapping[str, Setting]) -> None:
        self.path = Path(file)
        self.settings = settings

    def open(self) -> set[str]:
        """Makes the file, or checks and mends the one that is there; a torn last line, left by a kill, is cut off.

        Returns:
            The uids that are labelled already.

        Raises:
            InputError: if the file was measured with other settings, or is no file of measured labels.
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
        """Adds lines; they are on their way to the disk when this returns."""
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
    except (RecursionError, ValueError) as error:  # also a number of thousands of digits
        raise InputError(f"{place}: JSON that nobody can read ({error}): {text[:80]}") from error
    if not isinstance(record, dict):
        raise InputError(f'{place}: {text[:80]}; write one object a line, as {{"uid": "...", "difficulty": 40.0}}')
    return record


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return as_float(value)
