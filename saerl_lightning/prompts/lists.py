"""Prompts from lists of texts, for use from Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt


class ListPrompts(PromptSource):
    """Questions, each with its answer, as one user message a prompt.

    Lists may be columns of a frame or arrays: the first question belongs to the first answer, whatever their index says.

    Args:
        questions: Texts of the questions (N).
        answers: Right answers (N), texts or numbers; null where nothing is graded, as for features.
        labels: Numbers known about the questions by name, N each, as in {"difficulty": [0.2, 0.9]}, with null or NaN for
            one that is not known; null for none.
        source: Name of the prompts in the logs and in their ids.

    Raises:
        InputError: if there are no questions, or a list has another length, or an entry that can't be used.
    """

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[float]] | None = None,
        source: str = "list",
    ) -> None:
        self.questions = _texts("questions", questions)
        self.answers = None if answers is None else _texts("answers", answers)
        if not isinstance(labels or {}, Mapping):
            raise InputError(
                f"ListPrompts.labels is a {type(labels).__name__}; write numbers by name, as {{'difficulty': [1, 2]}}"
            )
        self.labels = {name: _numbers(f"labels[{name!r}]", values) for name, values in (labels or {}).items()}
        self.source = source
        if not self.questions:
            raise InputError("ListPrompts.questions is empty; give a list of at least one text")
        lists = {f"labels[{name!r}]": values for name, values in self.labels.items()}
        for name, values in {"answers": self.answers, **lists}.items():
            if values is not None and len(values) != len(self.questions):
                raise InputError(
                    f"ListPrompts.{name} has {len(values)} entries for {len(self.questions)} questions; give as many"
                )

    def load(self) -> list[Prompt]:
        """The prompts in the order of the lists, named `source/0`, `source/1` and so on."""
        return [
            Prompt.asking(
                uid=f"{self.source}/{i}",
                question=question,
                answer="" if self.answers is None else self.answers[i],
                source=self.source,
                labels={name: values[i] for name, values in self.labels.items() if math.isfinite(values[i])},
            )
            for i, question in enumerate(self.questions)
        ]


def _texts(name: str, values: Iterable[object]) -> list[str]:
    """Entries as texts; a missing one is refused, because its text ("None", "nan") would be taken for a real one."""
    found = list(_entries(name, values))
    for i, value in enumerate(found):
        if not isinstance(value, str | Number) or value != value or not str(value).strip():
            raise InputError(f"ListPrompts.{name}[{i}] is {value!r:.60}; give a text, or leave this question out")
    return [str(value) for value in found]


def _numbers(name: str, values: Iterable[object]) -> list[float]:
    """Entries as numbers; NaN is one that is not known."""
    found = list(_entries(name, values))
    for i, value in enumerate(found):
        if value is not None and not isinstance(value, Number):
            raise InputError(f"ListPrompts.{name}[{i}] is {value!r:.60}; give a number, or None where it is not known")
    return [math.nan if value is None else float(value) for value in found]  # type: ignore[arg-type]


def _entries(name: str, values: Iterable[object]) -> Iterable[object]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"ListPrompts.{name} is {values!r:.60}; give a list")
    if len(getattr(values, "shape", (0,))) != 1:
        raise InputError(
            f"ListPrompts.{name} is a table; give one column of it, or the table itself as FramePrompts(table)"
        )
    return values
