"""VerifiersEnv: the tasks of an environment of the verifiers package as prompts, which `VerifiersReward` grades."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.environment import Environment, ident_of, row_of
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Message, Prompt

if TYPE_CHECKING:
    from verifiers.v1 import Task

LABELS = ("difficulty", "level", "quality")


class VerifiersEnv(PromptSource):
    """Tasks of an environment of the verifiers package (0.4 or later), each played by one reply without tools.

    The package comes with the extra `[verifiers]`. The environment's code runs in the trainer's process, as that of any
    package; its rewards run in processes of `VerifiersReward`, which takes the same environment and arguments.

    Args:
        environment: Id of an installed environment, as `gsm8k` or `owner/gsm8k`, or a file, as `envs/mine.py`.
        arguments: Fields of the environment's configuration, such as {split: test}; those of its tasks under `task`.
        limit: Largest number of tasks, from the first; null takes all.
    """

    def __init__(self, environment: str, arguments: dict[str, Any] | None = None, limit: Count | None = None) -> None:
        self.environment = environment
        self.arguments = arguments
        self.limit = limit
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the tasks.

        Raises:
            InputError: if verifiers or the environment is missing, its arguments are wrong, it has no tasks, or a task
                needs more than one reply.
        """
        environment = Environment.load(self.environment, self.arguments or {})
        return [prompt_of(environment, task) for task in environment.tasks(self.limit)]


def prompt_of(environment: Environment, task: Task) -> Prompt:
    """Turns a task into a prompt, whose `grading` holds the task's data.

    Args:
        environment: The environment, which must be able to read the data again.
        task: One of its tasks.

    Raises:
        InputError: if the task's data can't be written as JSON and read again.
    """
    row, name = row_of(task), ident_of(environment.name)
    if environment.task(row).data != task.data:
        raise InputError(
            f"task {task.data.idx} of the environment {environment.name!r} is another after its data went through JSON, and "
            "graders get it by that; let its data have plain fields"
        )
    answer = row.get("answer", "")
    return Prompt(
        uid=f"{name}/{task.data.idx}",
        messages=tuple(messages_of(task)),
        answer=answer if isinstance(answer, str) else json.dumps(answer),
        source=name,
        labels={each: float(row[each]) for each in LABELS if isinstance(row.get(each), int | float)},
        grading=json.dumps({"environment": name, "row": row}),
        columns=row,
    )


def messages_of(task: Task) -> list[Message]:
    """Returns the messages that open a task, its system prompt first.

    Args:
        task: Task of an environment, whose prompt has neither images nor tools.
    """
    from verifiers.v1.types import content_text

    prompt = task.data.prompt
    system = task.data.system_prompt
    first = [] if system is None else [{"role": "system", "content": system}]
    if isinstance(prompt, str):
        return [*first, {"role": "user", "content": prompt}]
    return [*first, *({"role": each.role, "content": content_text(each.content)} for each in prompt or [])]
