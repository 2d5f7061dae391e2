"""A user's own reward function inside a grader process: how it is found, which form it has, what it returned."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from saerl_lightning.errors import did_you_mean

FORMS = (
    "write def accuracy(completions, prompts, **columns), which returns a list with one number a completion (TRL's form), or "
    "def compute_score(data_source, solution_str, ground_truth, extra_info), which returns a number or a dict with 'score' "
    "(verl's form)"
)

# 'file.py:function', 'package.module.function', or a function of the script itself as cloudpickle's bytes
Source = str | bytes
LOGGING = ("log_extra", "log_metric")  # functions that TRL gives to rewards; what they are told is not logged here
LIBRARY = str(Path(importlib.__file__).parent.parent)  # of the interpreter


@dataclass(frozen=True)
class Signature:
    """What is known of a reward function before it is called.

    Args:
        name: Name of the function.
        form: Whose convention it follows.
        takes: Names of its parameters.
        needs: Names of the parameters without a default.
        takes_all: Whether it takes every column, as `**columns`.
        is_async: Whether it is a coroutine function.
    """

    name: str
    form: Literal["trl", "verl"]
    takes: tuple[str, ...]
    needs: tuple[str, ...]
    takes_all: bool
    is_async: bool


@dataclass(frozen=True)
class Returned:
    """What a call came to: its numbers, or why there are none.

    Args:
        values: One number a completion; None where the function said that it does not apply.
        failure: What the call did wrong, as in "raised ValueError('…')"; "" where it returned.
        refusal: What is wrong with the kind of value that it returned; "" where nothing is.
    """

    values: Sequence[float | None] = ()
    failure: str = ""
    refusal: str = ""


def signature(source: Source) -> Signature | str:
    """Imports a function and reads its form off its parameters; a text says why it can't be used."""
    try:
        function = load(source)
    except LookupError as error:
        return str(error.args[0])
    except BaseException as error:  # SystemExit too: the file may be a script
        advice = ""
        if isinstance(error, ModuleNotFoundError) and isinstance(source, str) and source.startswith(f"{error.name}."):
            file = f"{error.name}.py:{source.rpartition('.')[2]}"
            advice = f" in this folder or installed; write the path of its file, as {file}"
        return f"it can't be imported: {type(error).__name__}: {error}{_place(error)}{advice}"
    if not callable(function) or inspect.isclass(function):
        return f"it is a {'class' if inspect.isclass(function) else type(function).__name__}, no function; {FORMS}"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return f"its signature can't be read; {FORMS}"
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes = tuple(each.name for each in named)
    forms: dict[Literal["trl", "verl"], bool] = {"trl": "completions" in takes, "verl": "solution_str" in takes}
    positional = any(each.kind == each.POSITIONAL_ONLY for each in parameters)
    if positional or forms["trl"] == forms["verl"]:
        return f"its parameters are ({', '.join(str(each) for each in parameters)}); {FORMS}"
    return Signature(
        name=getattr(function, "__name__", type(function).__name__).strip("<>"),
        form="trl" if forms["trl"] else "verl",
        takes=takes,
        needs=tuple(each.name for each in named if each.default is each.empty),
        takes_all=any(each.kind == each.VAR_KEYWORD for each in parameters),
        is_async=_is_async(function),
    )


def call(source: Source, form: str, calls: Sequence[Mapping[str, Any]], deadline_s: float) -> list[Returned]:
    """Calls a function once for every set of arguments.

    Args:
        source: Place of the function, or its code.
        form: Convention it follows, "trl" or "verl".
        calls: Keyword arguments of each call. Calls of a coroutine function run at the same time.
        deadline_s: Seconds a call of a coroutine function may take; others are killed from outside.
    """
    function = load(source)
    if form == "trl" and (logging := _logging(function)):
        calls = [{**each, **logging} for each in calls]
    if not _is_async(function):
        return [_called(function, form, arguments) for arguments in calls]

    async def together() -> list[Returned]:
        return await asyncio.gather(*(_awaited(function, form, arguments, deadline_s) for arguments in calls))

    return _loop().run_until_complete(together())


def _logging(function: Callable[..., Any]) -> dict[str, Callable[..., None]]:
    """What stands for TRL's logging functions, where a function takes them."""
    parameters = inspect.signature(function).parameters
    takes_all = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    return {name: lambda *_, **__: None for name in LOGGING if name in parameters or takes_all}


@lru_cache(maxsize=8)
def load(source: Source) -> Callable[..., Any]:
    """Imports a function.

    Raises:
        LookupError: if its module has no such name.
    """
    if isinstance(source, bytes):
        return pickle.loads(source)  # noqa: S301 (from our own trainer)
    place, _, name = source.rpartition(":" if ":" in source else ".")
    module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [each for each, value in vars(module).items() if inspect.isfunction(value)]
            raise LookupError(f"{place} has no '{name}'{did_you_mean(name, known) or _listed(known)}")
        found = getattr(found, part)
    return found


def _listed(names: Sequence[str]) -> str:
    return f"; it has {', '.join(names[:10])}" if names else "; it has no functions"


def _module_of_file(file: Path) -> ModuleType:
    """A file as a module; files beside it can be imported by it."""
    folder, name = str(file.resolve().parent), f"user_rewards_{file.stem}"
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} can't be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all calls of a process, so that what a function keeps open stays usable."""
    return asyncio.new_event_loop()


def _called(function: Callable[..., Any], form: str, arguments: Mapping[str, Any]) -> Returned:
    try:
        return _read(function(**arguments), form, arguments)
    except Exception as error:
        return Returned(failure=_said(error))


async def _awaited(
    function: Callable[..., Any], form: str, arguments: Mapping[str, Any], deadline_s: float
) -> Returned:
    deadline = asyncio.timeout(deadline_s)
    try:
        async with deadline:
            return _read(await function(**arguments), form, arguments)
    except Exception as error:
        if deadline.expired():
            return Returned(failure=f"ran past its deadline of {deadline_s:g} s")
        return Returned(failure=_said(error))


def _said(error: Exception) -> str:
    return f"raised {error!r:.300}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where the user's code stood: the last line of a file that is neither ours nor the interpreter's."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    frames = [frame for frame in frames if frame.filename != __file__ and not _of_python(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _of_python(file: str) -> bool:
    return file.startswith(LIBRARY) and "site-packages" not in file


def _read(result: Any, form: str, arguments: Mapping[str, Any]) -> Returned:
    """The numbers in what a function returned, or what is wrong with it."""
    if form == "verl":
        if isinstance(result, Mapping):
            if "score" not in result:
                return Returned(refusal=f"a dict without 'score', {_short(result)}; return {{'score': number}}")
            result = result["score"]
        return _numbers([result], "return a number, or a dict with 'score'")
    wanted = len(arguments["completions"])
    listed = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(listed, list | tuple):
        return Returned(refusal=f"{_short(result)}; return a list with one number (or None) a completion")
    if len(listed) != wanted:
        return Returned(
            refusal=f"{len(listed)} rewards for {wanted} completions; return one a completion, in their order"
        )
    return _numbers(listed, "return a list of numbers, with None where the reward does not apply")


def _numbers(values: Sequence[Any], instead: str) -> Returned:
    plain: list[Any] = [
        value.item() if hasattr(value, "item") and not isinstance(value, dict) else value for value in values
    ]
    for value in plain:
        if value is not None and not isinstance(value, int | float):
            return Returned(refusal=f"{_short(value)}; {instead}")
    return Returned([None if value is None else float(value) for value in plain])


def _short(value: Any) -> str:
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return f"{shown:.80} ({type(value).__name__})"
