"""Reads a study's file together with the file that it includes, which holds what several studies have in common."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_mapping, read_yaml

INCLUDABLE = ("base", "flags", "shared", "share")


def written_out(path: str | Path) -> Any:
    """Reads a study's file, with the lists of the included file before its own. Entries are not checked here.

    Raises:
        InputError: if a file can't be read, or the included one lies elsewhere or holds anything but lists of
            `INCLUDABLE`.
    """
    study = _read(path)
    if not isinstance(study, dict) or "include" not in study:
        return study
    common = _common(Path(path), study.pop("include"))
    # A value that is no list stays, and the check of the study names it.
    joined = {
        name: [*values, *study[name]] if isinstance(study.get(name), list) else study.get(name, values)
        for name, values in common.items()
    }
    return {**study, **joined}


def self_contained(path: Path) -> str:
    """Text of a study's file that needs no other file: the file's own text, or what it means with its include."""
    text = path.read_text(encoding="utf-8-sig")
    study = written_out(path)
    if study == _read(path):
        return text
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return comment + yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=10_000)


def _read(path: str | Path) -> Any:
    """Reads a file in which `null:` is a name, as in `gate: {oracle: a, null: b}`; YAML takes it for no name at all."""
    return _with_null_as_a_name(read_yaml(path, "the study"))


def _with_null_as_a_name(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_null_as_a_name(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {"null" if name is None else name: _with_null_as_a_name(each) for name, each in value.items()}


def _common(path: Path, name: Any) -> dict[str, list[Any]]:
    # Studies are passed around, so a file may not read what lies outside of its own folder.
    folder = path.parent.resolve()
    if not isinstance(name, str) or Path(name).is_absolute() or not (folder / name).resolve().is_relative_to(folder):
        raise InputError(f"the study '{path}' includes {name!r:.80}; write the path of one file beside it or below it")
    file, what = path.parent / name, f"the file that '{path}' includes,"
    common = read_mapping(file, what)
    for key, values in common.items():
        if key not in INCLUDABLE:
            raise InputError(
                f"{what} '{file}', has the key '{key}'; write that in the study, and {', '.join(INCLUDABLE)} here"
            )
        if not isinstance(values, list):
            raise InputError(f"{what} '{file}', has {key}: {values!r:.80}; write a list")
    return common
