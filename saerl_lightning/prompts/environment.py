"""Environments of the verifiers package: loads them, and refuses those that a single reply can't play. Imports no torch."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError, first_line

if TYPE_CHECKING:
    from verifiers.v1 import Task, Taskset

HARNESS = "bash"  # what verifiers gives an environment that brings no harness of its own
WANTED = "only environments of one reply without tools are taken"


@dataclass(frozen=True)
class Environment:
    """An environment: tasks, each with a prompt and rewards of its own.

    Args:
        name: Name that the user gave.
        taskset: Tasks of the environment, as verifiers loads them.
    """

    name: str
    taskset: Taskset

    @classmethod
    def load(cls, name: str, arguments: Mapping[str, Any]) -> Environment:
        """Imports an environment and makes it with its arguments; its tasks are not read yet.

        Args:
            name: Id or file of the environment.
            arguments: Fields of its configuration.

        Raises:
            InputError: if verifiers is not installed, the environment is not found, its arguments are wrong, or it needs
                more than one reply.
        """
        _require_verifiers()
        import verifiers.v1 as vf

        ident = _imported(name)
        try:
            settings = vf.taskset_config_type(ident).model_validate({**arguments, "id": ident})
            taskset = vf.load_taskset(settings)
        except Exception as error:  # the environment's own code runs here
            raise InputError(
                f"the environment {name!r} can't be made with {dict(arguments)}: {_said(error)}"
            ) from error
        _refuse_turns(name, ident, taskset)
        return cls(name, taskset)

    def tasks(self, limit: int | None) -> Iterator[Task]:
        """Yields the tasks, each checked.

        Args:
            limit: Largest number of tasks; null takes all.

        Raises:
            InputError: if there are none or without end, or a task can't be played in one reply.
        """
        if limit is None and not self.taskset.bounded:
            raise InputError(f"the environment {self.name!r} makes tasks without end; write how many: limit: 1000")
        empty = True
        for task in self._read(limit):
            self.require_playable(task)
            empty = False
            yield task
        if empty:
            raise InputError(f"the environment {self.name!r} has no tasks; its arguments may select none")

    def task(self, row: Mapping[str, Any]) -> Task:
        """Returns the task of a row that `row_of` wrote.

        Args:
            row: Data of the task.

        Raises:
            InputError: if the row is not of this environment.
        """
        kind = type(self.taskset).task_type()
        try:
            return kind(kind.data_type().model_validate(row), self.taskset.config.task)
        except ValueError as error:
            raise InputError(
                f"no task of the environment {self.name!r} can be made of its data: {_said(error)}"
            ) from error

    def require_playable(self, task: Task) -> None:
        """Refuses tasks that need more than one reply, or have no reward.

        Args:
            task: Task of this environment.

        Raises:
            InputError: saying what the task needs.
        """
        needs = _needed(task)
        if needs:
            raise InputError(f"the environment {self.name!r} {needs}; {WANTED}")
        if not task.hooks("reward") and not task.config.judges:
            raise InputError(f"the environment {self.name!r} has no reward: write a method with @vf.reward in its task")

    def _read(self, limit: int | None) -> Iterable[Task]:
        try:
            yield from self.taskset if limit is None else self.taskset.take(limit)
        except Exception as error:  # the environment's own code runs here
            raise InputError(f"the environment {self.name!r} can't read its tasks: {_said(error)}") from error


def row_of(task: Task) -> dict[str, Any]:
    """Returns the data of a task as values of JSON.

    Args:
        task: Task of an environment.
    """
    return task.data.model_dump(mode="json", exclude_defaults=True)


def ident_of(name: str) -> str:
    """Returns the id of an environment: its own, or that of its file.

    Args:
        name: Id or file of the environment.
    """
    return Path(name).stem if name.endswith(".py") else name


def _require_verifiers() -> None:
    if importlib.util.find_spec("verifiers") is None:
        raise InputError(
            "environments need the package verifiers, which is not installed; run pip install 'saerl-lightning[verifiers]'"
        )
    if importlib.util.find_spec("verifiers.v1") is None:
        raise InputError("the installed verifiers is too old: it has no verifiers.v1; run pip install 'verifiers>=0.4'")


def _imported(name: str) -> str:
    """The id by which verifiers finds the environment, which is imported."""
    import verifiers.v1 as vf

    ident = _registered(name) if name.endswith(".py") else name
    try:
        module = vf.import_taskset(ident)
    except ModuleNotFoundError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else ident
        asked = ident.rsplit("/", 1)[-1].split("@", 1)[0].replace("-", "_").lower()
        if missing and not f"{asked}.".startswith(f"{missing}."):
            raise InputError(f"the environment {name!r} needs the module {missing!r}; install it") from error
        raise InputError(
            f"there is no environment {name!r}: no module {asked!r} is installed; install its package, or write a file, as "
            "envs/mine.py"
        ) from error
    except Exception as error:  # the environment's own code runs here
        raise InputError(f"the environment {name!r} can't be imported: {_said(error)}") from error
    try:
        vf.taskset_config_type(ident)
    except (AttributeError, TypeError, ValueError) as error:
        old = "is of an older verifiers (it has `load_environment`)" if hasattr(module, "load_environment") else ""
        raise InputError(
            f"the environment {name!r} {old or 'exports no taskset'}; its module must name one Taskset of verifiers 0.4 in "
            "__all__"
        ) from error
    return ident


def _registered(file: str) -> str:
    """Imports a file as a module of its own name, so that verifiers finds it by that."""
    path = Path(file).resolve()
    name = path.stem
    if not path.is_file():
        raise InputError(f"there is no file {file!r} with an environment; write its path from here, as envs/mine.py")
    if not name.isidentifier() or name != name.lower():
        raise InputError(f"the environment's file is named {path.name!r}; give it a name in lower case, as mine.py")
    known = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if known is None else None
    place = getattr(known, "__file__", None) if spec is None else spec.origin
    if place is not None and Path(place).resolve() == path:
        return name
    if known is not None or spec is not None:
        raise InputError(f"the environment's file {file!r} has the name of another module; rename it, as my_{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except Exception as error:  # the environment's own code runs here
        del sys.modules[name]
        raise InputError(f"the environment {file!r} can't be imported: {_said(error)}") from error
    return name


def _refuse_turns(name: str, ident: str, taskset: Taskset) -> None:
    """Refuses environments that say of themselves that they play several turns or agents, or give tools."""
    import verifiers.v1 as vf

    kind, settings = type(taskset), taskset.config
    plays = vf.environment_class(ident)
    needs = ""
    if plays is not vf.SingleAgentEnv:
        needs = f"is played by its own {plays.__name__}"
    elif vf.default_harness_id(ident) != HARNESS:
        needs = "brings a harness of its own"
    elif tools := [*kind.toolsets(settings), *kind.task_type().toolsets(settings.task)]:
        needs = f"gives the policy tools ({type(tools[0]).__name__})"
    if needs:
        raise InputError(f"the environment {name!r} {needs}; {WANTED}")


def _needed(task: Task) -> str:
    """What a task needs beside one reply; "" for nothing."""
    import verifiers.v1 as vf
    from verifiers.v1.utils.decorators import discover_decorated

    prepares = [each for each in ("setup", "finalize") if getattr(type(task), each) is not getattr(vf.Task, each)]
    graders = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    boxed = [each.__name__ for each in graders if _wants_runtime(each)]
    if task.NEEDS_CONTAINER or task.data.image:
        return "runs its tasks in containers"
    if prepares:
        return f"prepares a sandbox (its task has `{prepares[0]}`)"
    if boxed:
        return f"grades in a sandbox (its reward `{boxed[0]}` takes `runtime`)"
    if discover_decorated(task, "intercept"):
        return "changes messages on their way (@vf.intercept)"
    return _unplayable(task.data.prompt)


def _wants_runtime(function: Any) -> bool:
    given = inspect.signature(function).parameters.get("runtime")
    return given is not None and given.default is inspect.Parameter.empty


def _unplayable(prompt: Any) -> str:
    if prompt is None:
        return "has a task without a prompt, which a simulated user opens"
    messages = [] if isinstance(prompt, str) else prompt
    if any(message.role == "tool" or getattr(message, "tool_calls", None) for message in messages):
        return "has a prompt with calls of tools"
    if any(part.type != "text" for m in messages if isinstance(m.content, list) for part in m.content):
        return "has a prompt with images"
    return ""


def _said(error: Exception) -> str:
    """An error in one line; of those of a configuration or a row the first, with its place."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {first_line(error)}"
