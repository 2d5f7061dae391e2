"""References such as `${data.seed}` between the arguments of a file, and variables, which nothing here knows."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from saerl_lightning.files import texts_in

# Without braces or dollars inside: of nested references, the innermost.
REFERENCE = re.compile(r"\$\{(oc\.select:)?\s*([\w.]+)\s*(?:,([^${}]*))?\}")
VARIABLE = re.compile(r"\$[\w{(@*]|`[^`]+`")
HOME = ("$HOME/", "${HOME}/")
ROUNDS, LONGEST, MOST = 16, 4096, 64  # references may lead to themselves, and grow as they do


def followed(value: object, name: str, values: Mapping[str, object], done: dict[str, object] | None = None) -> object:
    """Returns a value with its references replaced by what they lead to; others are left as they are.

    Args:
        value: Value of an argument.
        name: Name of the argument; references that begin with a dot are relative to it.
        values: Arguments of the file by name.
        done: Values that references on the way led to, by the name of their argument; null for none so far.
    """
    done = {} if done is None else done
    if isinstance(value, list):
        return [followed(each, name, values, done) for each in value]
    if isinstance(value, Mapping):
        return {key: followed(each, f"{name}.{key}", values, done) for key, each in value.items()}
    for _ in range(ROUNDS):
        if not isinstance(value, str) or "${" not in value or len(value) > LONGEST:
            break
        if whole := REFERENCE.fullmatch(value):
            found = _led(whole, name, values, done)
        else:
            found = REFERENCE.sub(lambda each: _shown(_led(each, name, values, done)), value)
        if found == value or (isinstance(found, str) and len(found) > LONGEST):
            break
        value = found
    return value


def _led(found: re.Match[str], name: str, values: Mapping[str, object], done: dict[str, object]) -> object:
    """Returns what a reference leads to; its own text if that is not in the file, or the reference itself."""
    selects, path, default = found[1], found[2], found[3]
    if path.startswith("."):
        below = path.lstrip(".")
        path = ".".join([*name.split(".")[: len(below) - len(path)], below])
    if path in values:
        if path not in done and len(done) < MOST:
            done[path] = found[0]
            done[path] = followed(values[path], path, values, done)
        return done.get(path, found[0])
    if not selects or any(each.startswith(f"{path}.") for each in values):
        return found[0]
    try:
        return yaml.safe_load(default) if default else None
    except yaml.YAMLError:
        return default


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def variable(value: object) -> str | None:
    """Returns the first text in a value that has a variable which is not read, such as `$MODEL`; None if there is none."""
    return next((each for each in texts_in(value) if VARIABLE.search(_behind_home(each))), None)


def _behind_home(text: str) -> str:
    """Returns a path without the home at its beginning, which is the one variable that is read."""
    return next((text.removeprefix(each) for each in HOME if text.startswith(each)), text)
