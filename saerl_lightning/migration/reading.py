"""Reads arguments from the files of other trainers: YAML, JSON, hydra's lists of overrides, and lines of key=value."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.files import check_yaml, read_json, read_mapping, read_text, read_yaml
from saerl_lightning.migration.references import followed

OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_]\w*(?:\.\w+)+)=(.*)", re.DOTALL)


def flat_arguments(path: str) -> dict[str, object]:
    """Reads arguments as TrlParser does: one mapping in YAML or JSON.

    Raises:
        InputError: if the file can't be read, or holds no mapping.
    """
    if not path.endswith(".json"):
        return {str(name): value for name, value in read_mapping(path, "the arguments").items()}
    content = read_json(path, "the arguments")
    if not isinstance(content, dict):
        raise InputError(f"the arguments '{path}' are no mapping; write name: value")
    return content


def dotted_arguments(path: str) -> dict[str, object]:
    """Reads hydra's arguments: nested YAML, a list of overrides in YAML, or a script with `a.b=value`.

    References such as `${data.seed}` to arguments of the same file are followed; `???` is no value.

    Raises:
        InputError: if the file can't be read, or holds no argument.
    """
    text = read_text(path, "the arguments")
    # A YAML file has no `a.b=value` outside of lists and comments.
    if re.search(r"^\s*['\"]?\+{0,2}[A-Za-z_]\w*(\.\w+)+=", text, re.MULTILINE):
        values = dict(_overrides(text))
    else:
        content = read_yaml(path, "the arguments")
        if isinstance(content, list):
            values = dict(_overrides("\n".join(shlex.quote(str(each)) for each in content)))
        elif isinstance(content, Mapping):
            values = dict(_flattened(content, ""))
        else:
            values = {}
    if not values:
        raise InputError(f"the arguments '{path}' hold none; write YAML, or lines such as data.train_batch_size=256")
    there = {name: value for name, value in values.items() if value != "???"}
    kept = {name: followed(value, name, there) for name, value in there.items() if not _of_hydra(name)}
    return _gathered(kept)


def _of_hydra(name: str) -> bool:
    """Whether an argument is hydra's own; `_target_` names a class that hydra makes."""
    return name.split(".")[0] == "hydra" or name.split(".")[-1] == "_target_"


def _overrides(text: str) -> Iterator[tuple[str, object]]:
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise InputError(f"the arguments have an open quote or a backslash at their end ({error}); close it") from error
    for word in words:
        if found := OVERRIDE.fullmatch(word):
            yield found[1], _value(found[2], found[1])


def _value(text: str, name: str) -> object:
    try:
        check_yaml(text)
        return yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name} is {text[:120]!r}, which is no value of YAML") from error


def _flattened(tree: Mapping[object, object], above: str) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value and path not in WHOLE:
            yield from _flattened(value, path)
        else:
            yield path, value


# Arguments whose value is a mapping.
WHOLE = (
    "data.apply_chat_template_kwargs",
    "custom_reward_function.reward_kwargs",
    "reward.custom_reward_function.reward_kwargs",
)


def _gathered(values: Mapping[str, object]) -> dict[str, object]:
    """Returns the arguments with those below one whose value is a mapping, as overrides have them, put together."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        whole = next((each for each in WHOLE if name.startswith(f"{each}.")), name)
        *above, last = [whole, *name.removeprefix(whole).split(".")[1:]]
        node = found
        for each in above:
            node[each] = node = dict(node[each]) if isinstance(node.get(each), Mapping) else {}
        node[last] = value
    return found
