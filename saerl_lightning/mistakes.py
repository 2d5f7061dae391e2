"""Words a command-line mistake, of jsonargparse's long message: the argument, the value seen, and what to write instead.

The original messages list every type that was tried, one per line, with the actual fault at the end.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import shlex
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

from saerl_lightning.errors import did_you_mean
from saerl_lightning.ranges import constructors

KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'str'>": "a text",
    "<class 'bool'>": "true or false",
    "<class 'list'>": "a list, as [one, two]",
    "<class 'collections.abc.Iterable'>": "a list, as [one, two]",
    "<class 'dict'>": "a mapping, as {name: value}",
    "<class 'NoneType'>": "null",
}
LONGEST = 120  # characters of a value that are shown
LONG_WORD = re.compile(r"\S{300,}")
KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:')
CLASS = re.compile(r"Problem with given class_path '([^']+)':")
VALUE = re.compile(r"\.? ?(?:Got value|Given value): (.*)$")
EXPECTED = re.compile(r"Expected an? (<class '[^']+'>|typing\.Literal\[.*\])$")
LINK = re.compile(r"argument (.+) --> (\S+): invalid")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: ?(.*)|Unexpected import path format: ?(.*)")
ABSTRACT = re.compile(r"Expected an instantiatable class, but ([\w.]+) is abstract|Not a valid subclass of (\w+)")
UNKNOWN_OPTION = re.compile(r"(?:Subcommand '\w+' does not accept option|Option|Key) '([^']+)'(?: is not accepted)?$")
UNRECOGNISED = re.compile(r"unrecognized arguments: (.*)$")
INVALID_CHOICE = re.compile(r"argument \w+: invalid choice: '([^']*)' \(choose from (.*)\)$")
CALLABLE = re.compile(r"expects a function or a callable class: (.*?)(?:\. Got value: Namespace\(.*)?$")
NO_VALUE = re.compile(r"argument (?:.*/)?--(\S+): expected one argument$")
REQUIRED = re.compile(r"the following arguments are required: (.*)$")
NO_VERB = re.compile(r'expected "subcommand" to be one of \{(.*)\}, but it was not provided')
WRAPPED = re.compile(r"NestedArg|Namespace")
OURS = re.compile(r"\w+\.\w+ is .+; write ")  # an InputError of one of our classes
OWNERS = {"saerl_lightning", "torch", "lightning"}  # packages whose classes are suggested
SCALARS = {"a whole number", "a number", "true or false"}
NOISE = re.compile(
    r"$|Does not validate against|Subtypes:|Errors:|Expected a path but|Given value type:|Given value:|"
    r"Subclass types expect|a class path|a dict with"
)


@dataclass(frozen=True)
class Complaint:
    """One fault from an error message, and the argument it concerns."""

    path: tuple[str, ...]
    text: str
    value: str | None
    owner: str  # dotted path of the class that has the argument; empty for none
    depth: int  # number of keys and classes above the argument
    indent: int = 0  # of its line: types inside of types stand deeper


def printed(message: str) -> str:
    """Formats a message for the terminal: one line, no control characters, long words cut."""
    shown = " ".join(message.split("\n"))
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)
    return LONG_WORD.sub(lambda word: f"{word[0][:LONGEST]}…{word[0][-20:]}", shown)


def one_line(message: str, options: Iterable[str] = (), given: Sequence[str] = ()) -> str:
    """Summarises a jsonargparse error message in one line.

    Args:
        message: Error message of jsonargparse.
        options: All option strings of the parser, from which similar names are suggested.
        given: Command-line arguments, to find those set on a slot that has no class.
    """
    if found := LINK.match(message):
        source = found[1].partition("(")[2].rstrip(")") or found[1]
        return f"{found[2]} follows from {source}, so it can't be set by itself; write --{source} instead"
    if found := NO_VALUE.match(message):
        return f"--{_without_value(found[1], given)} has no value; write one behind it"
    if found := REQUIRED.match(message):
        return _missing([name.removeprefix(f"{given[0]}." if given else "") for name in found[1].split(", ")])
    if found := NO_VERB.match(message):
        return f"no verb is given; write one of {', '.join(found[1].replace(' ', '').split(',')).replace('...', '…')}"
    complaints = list(_complaints(message))
    if not complaints:
        return _short(" ".join(message.split()), 600)
    # jsonargparse tries every type of a union. The type that fits best fails latest, so its message is nested deepest.
    # A mapping that names a class is meant as one, whatever else the place takes.
    named = {path.rpartition(".")[2] for path in re.findall(r"'class_path': '([\w.]+)'", message)}
    misnamed = [each for each in complaints if named.intersection(_class_name(each.text))]
    deepest = max(
        misnamed or complaints,
        key=lambda each: (each.depth, each.owner.rpartition(".")[2] in named, each.indent),
    )
    chosen = [each for each in complaints if (each.path, each.owner) == (deepest.path, deepest.owner)]
    return _summary(chosen, [each.lstrip("-") for each in options], given)


def _missing(names: Sequence[str]) -> str:
    """Says what to write for arguments that a command can't do without; a config has those of a run."""
    if {"model", "data"} & set(names):
        return f"no {' and no '.join(sorted(names, reverse=True))} is given; write -c CONFIG, as -c grpo.yaml"
    return f"{' and '.join(names)} must be given"


def _without_value(name: str, given: Sequence[str]) -> str:
    """Returns the full flag that lacks a value, where jsonargparse names only its section."""
    behind = [*given[1:], "--"]
    bare = [flag for flag, after in zip(given, behind, strict=False) if after.startswith("--") and "=" not in flag]
    return next((flag[2:] for flag in bare if flag.startswith(f"--{name}.")), name)


def _complaints(message: str) -> Iterator[Complaint]:
    """Yields the faults in a message. The indentation tells which key each belongs to."""
    stack: list[tuple[int, str, str]] = []  # indentation, key, class
    waiting: list[Complaint] = []  # faults whose value comes on a later line
    for line in _lines(message):
        indent = len(line) - len(line.lstrip(" -"))
        text = line.strip(" -")
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if found := KEY.match(text):
            stack.append((indent, found[1], ""))
            text = text[found.end() :].strip()
        elif found := CLASS.match(text):
            stack.append((indent, "", found[1]))
            continue
        path = tuple(key for _, key, _ in stack if key)
        if text.startswith("Given value: "):
            yield from (
                replace(each, value=each.value or text[13:].partition(". Got value: ")[0])
                for each in waiting
                if each.path == path
            )
            waiting = [each for each in waiting if each.path != path]
        elif not NOISE.match(text):
            value = VALUE.search(text)
            owner = next((name for _, _, name in reversed(stack) if name), "")
            said = text[: value.start()] if value else text
            waiting.append(Complaint(path, said, value[1] if value else None, owner, len(stack), indent))
    yield from waiting


def _lines(message: str) -> Iterator[str]:
    """Yields the lines of a message; faults inside the arguments of a class get an indented line of their own."""
    for line in message.splitlines():
        if found := CALLABLE.search(line):
            indent = " " * (len(line) - len(line.lstrip(" -")))
            if of := re.search(r"\. Got value: Namespace\(class_path='([\w.]+)'", line):
                yield f"{indent}Problem with given class_path '{of[1]}':"
            yield f"{indent} {found[1]}"
        else:
            yield line


def _summary(complaints: Sequence[Complaint], options: list[str], given: Sequence[str]) -> str:
    place = ".".join(complaints[0].path)
    value = next((each.value for each in complaints if each.value and not WRAPPED.match(each.value)), None)
    if ours := next((each.text for each in complaints if OURS.match(each.text)), None):
        return ours
    kinds = list(dict.fromkeys(_wanted(found[1]) for each in complaints if (found := EXPECTED.match(each.text))))
    others = [each for each in complaints if not EXPECTED.match(each.text)]
    misspelt = any(did_you_mean(name, shipped_names()) for each in others for name in _class_name(each.text))
    if value and KINDS["<class 'list'>"] in kinds and re.fullmatch(r"[\w./:-]+", value):
        kinds = [f"a list, as [{_short(value)}]" if kind.startswith("a list") else kind for kind in kinds]
    if kinds and (not others or (set(kinds) & SCALARS and not misspelt)):
        seen = place if value is None else f"{place} is {_short(value)!r}"
        return f"{seen}; write {' or '.join(kinds)}"
    for each in others:
        if said := _name_mistake(each, options, given):
            return f"{place}: {said}" if place else said
    said = "; ".join(dict.fromkeys(" ".join(each.text.split()) for each in others))
    seen = "" if value is None or value in said else f" (seen: {_short(value)})"
    return _short(f"{place}: {said}" if place else said, 600) + seen


def _name_mistake(about: Complaint, options: list[str], given: Sequence[str]) -> str | None:
    """Returns our own message for the most frequent mistakes, which are misspelt names; None for all others."""
    text = about.text
    known = _arguments(about.owner) if about.owner else options
    for name in _class_name(text):
        belongs = _belongs(name, given)
        others = [each for each in shipped_names() if each != name]
        hint = did_you_mean(name, others) or "; write a shipped class's name, or the dotted path of your own"
        return f"'{_short(name)}' fits no class for this place{belongs or hint}"
    if (found := ABSTRACT.search(text)) and not (about.value or "").startswith("["):
        return _unnamed((found[1] or found[2]).rpartition(".")[2], about, given)
    if found := UNKNOWN_OPTION.match(text):
        return f"'{found[1]}' is not accepted{_no_class_yet(found[1], about) or _suggestion(found[1], known)}"
    if found := UNRECOGNISED.match(text):
        word = found[1].split()[0]
        name = word.partition("=")[0].lstrip("-+")
        hint = _no_class_yet(name, about) or _without_dashes(found[1], known) or _suggestion(name, known)
        return f"'{name}' is not accepted{hint}"
    if found := INVALID_CHOICE.match(text):
        choices = re.findall(r"'([^']+)'", found[2])
        return f"'{found[1]}' is none of {', '.join(choices)}{did_you_mean(found[1], choices)}"
    return None


def _belongs(name: str, given: Sequence[str]) -> str:
    """Says at which settings a shipped class belongs, where it was given at another; "" for other names."""
    slots = [slot for each in _shipped() if each.__name__ == name.rpartition(".")[2] for slot in slots_of(each)]
    if not slots:
        return ""
    if any(flag.partition("=")[0].endswith(".help") for flag in given):
        return f"; it belongs at {' or '.join(slots)}: write -c grpo.yaml --{slots[0]}.help {name}"
    return f"; it belongs at {' or '.join(slots)}: write --{slots[0]} {name}"


def _no_class_yet(name: str, about: Complaint) -> str:
    """Advises on `--data.filtering.help NAME` before a config has named the class whose slot this is."""
    asks = name.endswith(".help") and len(about.path) == 1
    return (
        f"; name the class of {about.path[0]} before it, as in -c grpo.yaml --{about.path[0]}.{name} CLASS"
        if asks
        else ""
    )


def _without_dashes(words: str, known: Sequence[str]) -> str:
    """Advises on a setting that was written without dashes, as Hydra takes it: `trainer.max_steps=3`."""
    word, *behind = words.split()
    name, equals, value = word.lstrip("+").partition("=")
    value = value if equals else behind[0] if behind else "VALUE"
    sections = {each.partition(".")[0] for each in known if "." in each}
    is_setting = "." in name and not word.startswith("-") and name.partition(".")[0] in sections
    return f" without dashes; write --{name} {shlex.quote(value)}" if is_setting else ""


def _class_name(text: str) -> list[str]:
    """Returns the name that fits no class, in a list; an empty list if the line is about something else."""
    found = UNKNOWN_CLASS.search(text)
    return [found[1] or found[2] or ""] if found else []


def _suggestion(name: str, known: Sequence[str]) -> str:
    """Suggests similar names at the level where the dotted name is wrong."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        start, heads = ".".join(parts[:depth]), {".".join(each.split(".")[:depth]) for each in known}
        if start not in heads:
            return did_you_mean(start, heads)
    return ""


def _unnamed(base: str, about: Complaint, given: Sequence[str]) -> str:
    """Explains that an argument was set on a slot without a class, and names the classes that have the argument."""
    slot = ".".join(about.path)
    asked = {flag.removeprefix(f"--{slot}.").partition("=")[0] for flag in given if flag.startswith(f"--{slot}.")}
    asked |= _keys(about.value or "")
    fits = [each for each in _shipped() if base in (kind.__name__ for kind in each.__mro__[1:])]
    fits = [each for each in fits if not inspect.isabstract(each) and asked <= set(_arguments(each))]
    names = sorted(each.__name__ for each in fits)
    if not names:
        return f"it holds no class yet{_none_has(base, asked)}; name the class first, as --{slot} CLASS"
    listed = f" (of {', '.join(names)})" if len(names) > 1 else ""
    return (
        f"it holds no class yet, so there is no argument to set; name the class first, as --{slot} {names[0]}{listed}"
    )


def _none_has(base: str, asked: set[str]) -> str:
    return f", and no shipped {base} has the argument {' and '.join(sorted(asked))}" if asked else ""


def _keys(value: str) -> set[str]:
    """Returns the argument names in a mapping that names no class."""
    with contextlib.suppress(ValueError, SyntaxError):
        given = ast.literal_eval(value)
        return set(given.get("init_args", given)) if isinstance(given, dict) else set()
    return set()


def _wanted(kind: str) -> str:
    if kind.startswith("typing.Literal"):
        values = ast.literal_eval(kind.removeprefix("typing.Literal"))
        return "one of " + ", ".join(str(value) for value in values)
    return KINDS.get(kind, kind)


def _short(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


# -- names that exist ----------------------------------------------------------------------------------------------------

SEAMS = (
    "saerl_lightning.prompts.source.PromptSource",
    "saerl_lightning.prompts.source.ProbeReference",
    "saerl_lightning.signals.source.SignalSource",
    "saerl_lightning.data.callback.DataCallback",
    "saerl_lightning.rollout.engine.RolloutEngine",
    "saerl_lightning.reward.reward.Reward",
    "saerl_lightning.objective.objective.Objective",
    "lightning.LightningModule",
    "lightning.LightningDataModule",
    "lightning.Callback",
    "lightning.pytorch.loggers.Logger",
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
)


def shipped_names() -> list[str]:
    """Returns the names of the classes that fit a slot: ours, torch's and Lightning's."""
    return sorted({each.__name__ for each in _shipped() if not each.__name__.startswith("_")})


def strange_argument(words: Sequence[str], slot: str = "data.train") -> str | None:
    """Says which argument a class in a slot does not have, where the slot takes mappings with any names too; None if none.

    Args:
        words: Words of a command line.
        slot: Setting that takes a class, or a mapping.
    """
    line = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    places = (f"--{slot}", f"--{slot}.class_path")
    owners = {behind.rpartition(".")[2] for word, behind in pairwise(line) if word in places}
    if not owners.intersection(shipped_names() if owners else ()):
        return None
    kind = next(each for each in _shipped() if each.__name__ in owners)
    known = _arguments(kind)
    for word in line:
        name = word.removeprefix(f"--{slot}.").removeprefix("init_args.")
        if word.startswith(f"--{slot}.") and name.split(".")[0] not in {"class_path", "help", *known}:
            near = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            return f"'{slot}.{name}' is not accepted by {kind.__name__}{near}"
    return None


def slots_of(part: type) -> list[str]:
    """Returns the settings of the shipped modules and datamodules that take a class, such as `data.filtering`."""
    found = []
    for section, base in (("model", "lightning.LightningModule"), ("data", "lightning.LightningDataModule")):
        for owner in _shipped():
            if issubclass(owner, _imported(base)) and owner.__module__.startswith("saerl_lightning."):
                hints = [pair for kind in constructors(owner) for pair in _hints(kind).items()]
                found += [f"{section}.{name}" for name, hint in hints if _takes(hint, part)]
    return list(dict.fromkeys(found))


def _takes(hint: Any, part: type) -> bool:
    """Whether a type, or one inside it, is a base of a class."""
    inner = typing.get_args(hint)
    return hint in part.__mro__[:-1] if inspect.isclass(hint) else any(_takes(each, part) for each in inner)


def _shipped() -> list[type]:
    found = dict.fromkeys(_imported(seam) for seam in SEAMS)
    pending = list(found)
    while pending:
        for each in pending.pop().__subclasses__():
            if each not in found:
                found[each] = None
                pending.append(each)
    return [each for each in found if each.__module__.partition(".")[0] in OWNERS]


def _imported(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments(cls: type | str) -> list[str]:
    """Returns the argument names of a class, with the fields of nested settings as dotted names (`sampling.seed`)."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, NameError):
        cls = _imported(cls) if isinstance(cls, str) else cls
        hints = {name: hint for kind in constructors(cls) for name, hint in _hints(kind).items()}
        names = list(hints)
        nested = {name: _settings(hint) for name, hint in hints.items()}
        return names + [f"{name}.{each}" for name, own in nested.items() for each in own]
    return []


def _hints(kind: type) -> dict[str, Any]:
    """Arguments of a class's own constructor with their annotations."""
    hints = typing.get_type_hints(kind.__init__)
    given = inspect.signature(kind.__init__).parameters.values()
    named = [each.name for each in given if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return {name: hints.get(name) for name in named if name != "self"}


def _settings(hint: Any) -> list[str]:
    kinds = [hint, *typing.get_args(hint)]
    return [each.name for kind in kinds if is_dataclass(kind) for each in fields(kind)]
