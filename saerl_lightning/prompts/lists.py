"""ListPrompts: prompts from Python lists, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt


class ListPrompts(PromptSource):
    """Questions, each with its answer, as one user message a prompt.

    Args:
        questions: Texts of the questions (N).
        answers: Right answers (N); null where nothing is graded, as for features.
        labels: Numbers known about the questions by name, N each, as in {"difficulty": [0.2, 0.9]}; null for none.
        source: Name of the prompts in the logs and in their ids.

    Raises:
        InputError: if there are no questions, or a list has another length.
    """

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[float]] | None = None,
        source: str = "list",
    ) -> None:
        self.questions = questions
        self.answers = answers
        self.labels = labels
        self.source = source
        lists = {f"labels[{name!r}]": values for name, values in (labels or {}).items()}
        for name, values in {**lists, **({} if answers is None else {"answers": answers})}.items():
            if len(values) != len(questions):
                raise InputError(f"ListPrompts.{name} has {len(values)} entries for {len(questions)} questions")
        if not questions or isinstance(questions, str):
            raise InputError(f"ListPrompts.questions is {questions!r:.60}; give a list of at least one text")

    def load(self) -> list[Prompt]:
        """The prompts in the order of the lists, named `source/0`, `source/1` and so on."""
        return [
            Prompt.asking(
                uid=f"{self.source}/{i}",
                question=question,
                answer="" if self.answers is None else str(self.answers[i]),
                source=self.source,
                labels={name: float(values[i]) for name, values in (self.labels or {}).items()},
            )
            for i, question in enumerate(self.questions)
        ]
