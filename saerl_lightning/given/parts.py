"""Parts: the objects that a constructor takes in Python. Each is judged there, by the annotation of its argument.

The command line makes parts itself and has judged them before; these messages are for notebooks and scripts.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from saerl_lightning.errors import InputError, shown

OURS = "saerl_lightning."

# How a part of each kind is written, for who gave something else.
EXAMPLES = {
    "ChatTemplate": "ChatTemplate(system='Be brief.')",
    "Clustering": "TopicClusters()",
    "Curriculum": "LengthOrder()",
    "DataCallback": "DiverseBatches()",
    "Domains": "LabelDomains('topic')",
    "EntropyTerm": "EntropyTerm()",
    "Filtering": "LengthFilter()",
    "Keep": "PODS()",
    "KLPenalty": "KLPenalty(weight=0.01)",
    "MismatchGuard": "MismatchGuard()",
    "Mixer": "RewardGap()",
    "Mixing": "TailMixing()",
    "Objective": "GRPO()",
    "Policy": "Policy('folder or hub name')",
    "Probe": "RidgeProbe()",
    "ReadModel": "ReadModel('folder or hub name')",
    "Replay": "Replay()",
    "Reweighting": "PER()",
    "Reward": "MathReward()",
    "RolloutEngine": "HFEngine()",
    "Rounds": "DynamicSampling()",
    "SAESource": "SAESource('folder')",
    "Sampling": "Sampling(group_size=8)",
    "ServerOptions": "ServerOptions(data_parallel=2)",
    "SignalSource": "RandomSignals()",
    "WeightTransfer": "FileTransfer()",
}


def require_parts(owner: str, hints: Mapping[str, Any], given: Mapping[str, object]) -> None:
    """Refuses arguments that are no parts where the annotation asks for parts, or for a list of them.

    Args:
        owner: Name of the class whose constructor has the arguments.
        hints: Annotations of the arguments, by name. Those that also admit texts or numbers are not judged.
        given: Values of the arguments, by name.

    Raises:
        InputError: for the first part that does not fit.
    """
    for name, hint in hints.items():
        options = set(_options(hint))
        kinds = _widest(options - {type(None)})
        if name not in given or len(kinds) != 1 or (given[name] is None and type(None) in options):
            continue
        kind: Any = kinds[0]
        if typing.get_origin(kind) is list and _is_part(typing.get_args(kind)[0]):
            require_list(f"{owner}.{name}", given[name], typing.get_args(kind)[0])
        elif _is_part(kind):
            require_part(f"{owner}.{name}", given[name], typing.get_origin(kind) or kind)


def texts_of_paths(owner: str, hints: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, str]:
    """Returns the texts of the paths that were given as objects, by argument.

    Args:
        owner: Name of the class whose constructor has the arguments.
        hints: Annotations of the arguments, by name. Those that admit more than a text or null are not judged.
        given: Values of the arguments, by name.

    Raises:
        InputError: if a value is a number, or nothing where a text is needed.
    """
    found = {}
    for name, hint in hints.items():
        value, options = given.get(name, ""), set(_options(hint))
        if options - {type(None)} != {str} or isinstance(value, str) or (value is None and type(None) in options):
            continue
        if isinstance(value, os.PathLike):
            found[name] = str(value)
        # Anything else may be what the constructor made of a text, such as a compiled pattern.
        elif value is None or isinstance(value, Real):
            raise InputError(f"{owner}.{name} is {shown(value)}; write a text")
    return found


def require_list(place: str, given: object, kind: type) -> None:
    """Refuses what is no list of parts of a kind.

    Raises:
        InputError: naming the place of the first that does not fit.
    """
    if not isinstance(given, list | tuple):
        refuse_no_list(place, given, EXAMPLES.get(kind.__name__, f"{kind.__name__}(…)"))
    for number, each in enumerate(given):
        require_part(f"{place}[{number}]", each, kind)


def refuse_no_list(place: str, given: object, example: str) -> typing.NoReturn:
    """Refuses a single value where a list is wanted.

    Raises:
        InputError: with the value in a list, if it is an object of ours or a function, else with an example.
    """
    if inspect.isroutine(given):
        example = given.__name__
    elif not isinstance(given, type | str | int | float | dict | None):
        example = written(type(given))
    raise InputError(f"{place} is {shown(given)}; write a list, {place.rpartition('.')[2]}=[{example}]")


def require_part(place: str, given: object, kind: type) -> None:
    """Refuses an object of another class, a class in place of an object, and methods that can't be called as they will be.

    Args:
        place: Class and argument, for the message.
        given: Value that the user gave.
        kind: Class that the value must have.

    Raises:
        InputError: with what came, and what to write instead.
    """
    if isinstance(given, type) and issubclass(given, kind):
        raise InputError(f"{place} is {shown(given)}; write an object of it, {written(given)}")
    if not isinstance(given, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        name = place.rpartition(".")[2]
        example = EXAMPLES.get(kind.__name__, f"{kind.__name__}(…)")
        raise InputError(f"{place} is {shown(given)}; write {article} {kind.__name__}, as {name}={example}")
    for name, declared in _declared(kind):
        own = inspect.getattr_static(type(given), name)
        if isinstance(declared, property) and inspect.isfunction(own):
            raise InputError(
                f"{place}: {type(given).__name__}.{name} is a method; write @property above it, as {kind.__name__} has it"
            )
        if inspect.isfunction(declared) and inspect.isfunction(own) and own is not declared:
            _require_signature(f"{place}: {type(given).__name__}.{name}", getattr(given, name), declared)


def written(kind: type) -> str:
    """Returns how an object of a class is made: with … in place of arguments that it needs."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return f"{kind.__name__}(…)"
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs = any(each.default is each.empty and each.kind not in variadic for each in parameters)
    return f"{kind.__name__}({'…' if needs else ''})"


def _options(hint: Any) -> Iterator[Any]:
    """Yields what a union admits; a hint that is no union is its only option."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _options(each)
    else:
        yield hint


def _widest(kinds: set[Any]) -> list[Any]:
    """Leaves out classes that another one of the kinds is a base of: they are named first, to be made without a name."""
    return [
        kind
        for kind in kinds
        if not (
            isinstance(kind, type) and any(issubclass(kind, o) for o in kinds if isinstance(o, type) and o is not kind)
        )
    ]


def is_part_or_text(hint: Any) -> bool:
    """Whether an annotation asks for a part, a list of parts or a text, and for nothing else but null."""
    kinds = _widest(set(_options(hint)) - {type(None)})
    if len(kinds) != 1:
        return False
    listed = typing.get_args(kinds[0])[0] if typing.get_origin(kinds[0]) is list else kinds[0]
    return kinds[0] is str or _is_part(listed)


def _is_part(kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and kind.__module__.startswith(OURS)


def _declared(kind: type) -> Iterator[tuple[str, Any]]:
    """Yields the public methods and properties of a kind of part, and how it is called."""
    for name in dir(kind):
        if name == "__call__" or not name.startswith("_"):
            yield name, inspect.getattr_static(kind, name)


def _require_signature(place: str, own: Callable[..., object], declared: Callable[..., object]) -> None:
    wanted = [each for each in inspect.signature(declared).parameters.values() if each.name != "self"]
    positional = [each.name for each in wanted if each.kind is each.POSITIONAL_OR_KEYWORD]
    takes = inspect.signature(own)
    try:
        takes.bind(*positional)
    except TypeError:
        names = ", ".join(each.name for each in takes.parameters.values())
        method = place.rpartition(".")[2]
        raise InputError(f"{place} takes ({names}); write def {method}({', '.join(['self', *positional])})") from None
