"""Reads TRL's arguments from where they stand: YAML, JSON, a Python script (which is not run), or a shell command."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_text
from saerl_lightning.migration.reading import flat_arguments

# Keywords of the calls of a script, as TRL's command line calls them.
KEYWORDS = {
    "GRPOTrainer": {"model": "model_name_or_path", "reward_funcs": "reward_funcs"},
    "LoraConfig": {
        "r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
    },
    "load_dataset": {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"},
}
ENDS = {"&", "&&", "||", "|", ";", ">", ">>", "2>&1", "&>"}  # of a command
PLACES = {"load_dataset": ("path", "name")}  # names of arguments without a keyword


def trl_arguments(path: str) -> dict[str, object]:
    """Reads arguments by the names that TRL's command line gives them.

    Raises:
        InputError: if the file can't be read, or holds no arguments.
    """
    if path.endswith(".py"):
        return _of_script(path)
    return _of_command(path) if path.endswith((".sh", ".bash")) else flat_arguments(path)


def _of_script(path: str) -> dict[str, object]:
    """Arguments of `GRPOConfig`, `GRPOTrainer`, `LoraConfig` and the first `load_dataset`; what is no literal is `$(…)`."""
    try:
        tree = ast.parse(read_text(path, "the script"))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the script '{path}' is no Python: {error}") from error
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {name: [call for call in calls if _last(call.func) == name] for name in ("GRPOConfig", *KEYWORDS)}
    if not named["GRPOConfig"]:
        raise InputError(
            f"the script '{path}' has no GRPOConfig(…); give the YAML, or the .sh, that it was started with"
        )
    known = _known(tree)
    values = {each.arg: _value(each.value, known) for each in named["GRPOConfig"][0].keywords if each.arg}
    for name, keywords in KEYWORDS.items():
        for call in named[name][:1]:
            given = dict(zip(PLACES.get(name, ()), call.args, strict=False)) | {
                str(k.arg): k.value for k in call.keywords
            }
            values |= {keywords[key]: _value(node, known) for key, node in given.items() if key in keywords}
    if named["LoraConfig"]:
        values["use_peft"] = True
    return values


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _known(tree: ast.Module) -> dict[str, object]:
    """Values of names: literals that they are given once, and the dotted paths of what is imported."""
    known: dict[str, object] = {}
    twice: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            trl = node.module.split(".")[0] == "trl"
            known |= {
                each.asname or each.name: each.name if trl else f"{node.module}.{each.name}" for each in node.names
            }
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            twice |= {name} & known.keys()
            known[name] = _value(node.value, {})
    return {name: value for name, value in known.items() if name not in twice}


def _value(node: ast.expr, known: dict[str, object]) -> object:
    """The value of an expression; `$(…)`, which counts as a variable, for one that only running it would tell."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, known) for each in node.elts]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return node.attr  # a type of numbers
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return f"$({ast.unparse(node)})"


def _of_command(path: str) -> dict[str, object]:
    """Flags behind `trl grpo`, or behind the first script; those of a `--config` are read too, and weigh less."""
    try:
        words = shlex.split(read_text(path, "the command").replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise InputError(
            f"the command '{path}' has an open quote or a backslash at its end ({error}); close it"
        ) from error
    start = next((place for place, word in enumerate(words) if word == "grpo" or word.endswith(".py")), len(words))
    values = dict(_flags([*takewhile(lambda each: each not in ENDS, words[start + 1 :])]))
    if not values:
        raise InputError(f"the command '{path}' has no flags behind 'trl grpo' or a script; write --name value")
    config = values.pop("config", None)
    below = flat_arguments(str(Path(path).parent / str(config))) if config is not None else {}
    return below | values


def _flags(words: list[str]) -> Iterator[tuple[str, object]]:
    for place, word in enumerate(words):
        if found := re.fullmatch(r"--(\w[\w-]*)(?:=(.*))?", word, re.DOTALL):
            behind = list(takewhile(lambda each: not each.startswith("--"), words[place + 1 :]))
            read = [_read(each) for each in (behind if found[2] is None else [found[2]])]
            yield found[1].replace("-", "_"), True if not read else read[0] if len(read) == 1 else read


def _read(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
