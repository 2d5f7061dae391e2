"""Every number that a user can set has a range, and what is outside of it is refused as it is set.

The classes are found by walking from the command line's own types, so that a new class, or a new number, is held to it
by itself.
"""

from __future__ import annotations

import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import lightning
import pytest
from jaxtyping import TypeCheckError

from saerl_lightning.errors import InputError
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.ranges import constructors, ranges, require_arguments
from saerl_lightning.study.processes import RayExecutor, SubprocessExecutor
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools import demo, study
from saerl_lightning.verbs import label

ROOTS = [
    lightning.LightningModule,
    lightning.LightningDataModule,
    lightning.Callback,
    StudySpec,
    RayExecutor,
    SubprocessExecutor,
]
HOSTILE = [math.nan, math.inf, -math.inf, -1, 0, 10**30, -(10**30)]
# Options of sae-lens's names (`test_sae_options_have_a_range`), and labels, which are data as in a file of prompts.
CHECKED_ELSEWHERE = {"SAEModule.options", "ListPrompts.labels", "ChatTemplate.options"}  # of other libraries, or data
FUNCTIONS = [demo.demo, label.label, demo.tiny_policy, *(f for f in study.VERBS.values())]


def is_ours(kind: object) -> bool:
    return inspect.isclass(kind) and kind.__module__.startswith("saerl_lightning.")


def parts(hint: object) -> Iterator[object]:
    yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


def hints_of(function: Callable, module: str) -> dict[str, object]:
    hints = typing.get_type_hints(function, vars(sys.modules[module]), include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


def fields(kind: type) -> dict[str, object]:
    """What a class's constructor takes, where the constructor is ours."""
    owners = [owner for owner in constructors(kind) if is_ours(owner)]
    return {name: hint for owner in owners[::-1] for name, hint in own_fields(owner).items()}


def own_fields(owner: type) -> dict[str, object]:
    passed_on = [n for n, p in inspect.signature(owner.__init__).parameters.items() if p.kind is p.VAR_KEYWORD]
    hints = hints_of(owner.__init__, owner.__module__)
    return {name: hint for name, hint in hints.items() if name not in passed_on}


def settable() -> dict[str, type]:
    """Classes that the command line can make: subclasses of its types, and whatever their constructors take."""
    found: dict[str, type] = {}
    pending = list(ROOTS)
    while pending:
        kind = pending.pop()
        if kind is object:  # any value, as in a mapping of them: all classes come from it
            continue
        pending += [each for each in kind.__subclasses__() if is_ours(each)]
        if is_ours(kind) and kind.__name__ not in found:
            found[kind.__name__] = kind
            pending += [part for hint in fields(kind).values() for part in parts(hint) if inspect.isclass(part)]
    return {name: kind for name, kind in found.items() if not inspect.isabstract(kind)}


def numbers(hints: dict[str, object]) -> dict[str, object]:
    return {name: hint for name, hint in hints.items() if any(part in (int, float) for part in parts(hint))}


CLASSES = settable()
SETTINGS = [
    (kind, name)
    for kind in CLASSES.values()
    for name in numbers(fields(kind))
    if f"{kind.__name__}.{name}" not in CHECKED_ELSEWHERE
]


def test_the_walk_finds_what_there_is():
    known = {"GRPOModule", "Sampling", "LoRA", "KMeansClusters", "SAESignals", "MathReward", "GRPO", "KLPenalty"}
    known |= {
        "CISPO",
        "DrGRPO",
        "VLLMEngine",
        "RidgeProbe",
        "FilePrompts",
        "CorruptedCopies",
        "Budget",
        "ReadModel",
        "CompletionTable",
    }
    assert known <= CLASSES.keys()
    assert len(SETTINGS) > 120
    assert fields(DAPO).keys() == {
        "mask_truncated",
        "clip_low",
        "clip_high",
        "dual_clip",
        "kl",
        "entropy",
        "correction",
    }


def stand_in(hint: object) -> object:
    """Something for an argument without a default; most constructors only store."""
    if str in parts(hint):
        return "http://127.0.0.1"  # also an address, which JudgeReward looks at
    range_ = next(ranges(hint), None)
    return SimpleNamespace(lora=None) if range_ is None else int(max(1, range_.least))


def made(kind: type, name: str, value: float) -> object:
    hints = fields(kind)
    required = {
        n: stand_in(hints[n])
        for n, p in inspect.signature(kind).parameters.items()
        if p.default is inspect.Parameter.empty and n in hints
    }
    outer = {typing.get_origin(part) for part in parts(hints[name])}
    given = {"x": value} if dict in outer else [value] if outer & {list, Sequence} else value
    return kind(**{**required, name: given})


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=[f"{kind.__name__}.{name}" for kind, name in SETTINGS])
def test_a_number_has_a_range_and_is_refused_outside_of_it(kind, name):
    allowed = next(ranges(fields(kind)[name]), None)
    assert allowed is not None, f"write the range of {kind.__name__}.{name} beside its type (saerl_lightning.ranges)"
    for value in HOSTILE:
        if allowed.holds(value):
            continue
        with pytest.raises((InputError, TypeCheckError), match=f"{name}|range|{kind.__name__}"):
            result = made(kind, name, value)
            if isinstance(result, StudySpec):
                result.check()
    assert not any(allowed.holds(value) for value in (math.nan, math.inf, -math.inf, 10**30))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_tools_number_has_a_range(function):
    found = numbers(hints_of(function, function.__module__))
    for name, hint in found.items():
        allowed = next(ranges(hint), None)
        assert allowed is not None, f"write the range of {function.__name__}'s {name}"
        for value in HOSTILE:
            if not allowed.holds(value):
                with pytest.raises(InputError, match=f"--{name} is "):
                    require_arguments(function, {name: value})
    if found:
        assert f"require_arguments({function.__name__}, locals())" in inspect.getsource(function)
