"""Writes files and folders atomically (beside their place, then renamed), and reads YAML, JSON and text with short errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.moved import at_new_paths, in_new_forms


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yields a temporary path. The file written there replaces `target` when the block succeeds; otherwise it is deleted.

    Args:
        target: Path of the finished file.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}.writing")
    try:
        yield staged
        with staged.open("rb") as file:
            # After a power failure, a renamed file whose data was never flushed would be empty.
            os.fsync(file.fileno())
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def write_whole(target: Path, text: str) -> None:
    """Writes a text file atomically, and makes its folder if needed. Readers see the old text or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as staged:
        staged.write_text(text, encoding="utf-8")


def keep_earlier(target: Path) -> Path | None:
    """Renames a file that would be replaced: the time at which it was written comes before its ending.

    Returns:
        Its new path; None if there was no file.
    """
    if not target.exists():
        return None
    written = datetime.fromtimestamp(target.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    names = (f"{target.stem}-{written}{turn}{target.suffix}" for turn in ["", *(f"-{i}" for i in range(2, 1000))])
    kept = next(place for name in names if not (place := target.with_name(name)).exists())
    return target.rename(kept)


@contextmanager
def whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder. It becomes `target` when the block succeeds; otherwise it is deleted.

    Args:
        target: Path of the finished folder.
        replace: Whether to replace an existing folder. If false, an existing folder must be empty.

    Raises:
        InputError: if `target` is a file, or is a folder with content and `replace` is false.
    """
    occupied = target.is_dir() and any(target.iterdir())
    if target.is_file() or (occupied and not replace):
        raise InputError(f"{target} exists and is not empty; write another folder, or remove this one first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}-", ignore_cleanup_errors=True
    ) as temporary:
        staged, older = Path(temporary, target.name), Path(temporary, "older")
        staged.mkdir()
        yield staged
        if occupied:
            target.rename(older)
        try:
            staged.rename(target)
        except OSError:
            if older.exists():
                shutil.move(older, target)
            raise


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


# Errors that users can correct: no permission, missing folder, read-only disk, file in place of a folder, too long
# name.
REFUSALS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "ENOENT", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG")
}


def said_of_disk(error: OSError) -> str | None:
    """Describes a file-system error that the user can correct; returns None for other errors."""
    if disk_is_full(error):
        return "the disk is full; free some of it and repeat the command, what is whole is kept"
    if error.errno in REFUSALS and error.filename is not None:
        in_the_way = error.errno == errno.EEXIST and Path(error.filename).is_file()
        why = "it is a file, and would have to be a folder" if in_the_way else error.strerror
        return f"'{error.filename}' can't be used: {why}; name another place, as by --run_dir or --out"
    return None


# Far above any real configuration: a run's has 12 levels and 300 values (aliases expanded). Small YAML files can expand
# to billions of values, so both are limited before anything is built.
DEEPEST = 64
MOST_VALUES = 100_000
READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path, what: str) -> Any:
    """Reads a YAML file.

    Args:
        path: Path of the file.
        what: Description of the file for messages, such as "the study".

    Raises:
        InputError: if the file can't be read, is not UTF-8 or YAML, repeats a key, or exceeds the limits of
            `check_yaml`.
    """
    text = read_text(path, what)
    try:
        check_yaml(text)
        content = yaml.load(at_new_paths(text), Loader=READER)  # noqa: S506 - READER is a safe loader
        return in_new_forms(content)
    except yaml.YAMLError as error:
        raise InputError(f"{what} '{path}' is no YAML: {' '.join(str(error).split())}") from error
    except (InputError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise InputError(f"{what} '{path}': {error}") from error


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a YAML file that must hold a mapping, such as a run's configuration.

    Raises:
        InputError: as for `read_yaml`, or if the content is not a mapping.
    """
    content = read_yaml(path, what)
    if not isinstance(content, dict):
        raise InputError(f"{what} '{path}' holds {content!r:.60}; it is no mapping, as trainer: {{max_steps: 3}}")
    return content


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: if the file can't be read, is not UTF-8 or JSON, or is nested too deeply.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} '{path}' is no JSON ({error})") from error


def read_text(path: str | Path, what: str) -> str:
    """Reads a text file.

    Raises:
        InputError: if the file can't be read, is a pipe, or is not UTF-8.
    """
    # Opening a pipe would block, and its content could be read only once.
    if Path(path).is_fifo():
        raise InputError(f"{what} '{path}' is a pipe; write the name of a file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} '{path}' can't be read: {error.strerror}; name another file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} '{path}' is not UTF-8 text ({error.reason}); save it as UTF-8") from error


@dataclass
class _Open:
    """A YAML list or mapping whose end has not been reached."""

    anchor: str | None
    began: int  # number of values before it
    mapping: bool
    keys: set[str] = field(default_factory=set)
    entries: int = 0  # entries so far; in a mapping, keys and values alternate

    def add(self, event: yaml.Event) -> None:
        """Counts an entry, and refuses a repeated key."""
        if self.mapping and self.entries % 2 == 0 and isinstance(event, yaml.ScalarEvent):
            if event.value in self.keys:
                line = event.start_mark.line + 1
                raise InputError(f"line {line} has the key '{event.value}' for the second time; keep one of the two")
            self.keys.add(event.value)
        self.entries += 1


def texts_in(value: object) -> Iterator[str]:
    """Yields all texts in a value read from YAML or JSON, at any depth; keys are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(each)


def check_yaml(text: str) -> None:
    """Checks the structure of a YAML text from its events, without building any value.

    Raises:
        InputError: if a key is repeated, the nesting exceeds 64 levels, or the text has more than 100,000 values with
            its aliases expanded.
        yaml.YAMLError: if the text is not YAML.
    """
    opened: list[_Open] = []
    sizes: dict[str, int] = {}
    values = 0
    try:
        for event in yaml.parse(text, Loader=READER):
            if isinstance(event, yaml.CollectionEndEvent):
                closed = opened.pop()
                if closed.anchor is not None:
                    sizes[closed.anchor] = values - closed.began
            elif isinstance(event, yaml.NodeEvent):
                if opened:
                    opened[-1].add(event)
                values += 1
                if isinstance(event, yaml.AliasEvent):
                    values += _expanded(event, values, opened, sizes)
                elif isinstance(event, yaml.CollectionStartEvent):
                    opened.append(_Open(event.anchor, values, isinstance(event, yaml.MappingStartEvent)))
                    _refuse_depth(opened, event)
    except UnicodeEncodeError as error:
        raise InputError(f"{text[:60]!r} is not UTF-8 text; write it in UTF-8") from error


def _expanded(event: yaml.AliasEvent, values: int, opened: list[_Open], sizes: dict[str, int]) -> int:
    """Returns the number of values that an alias adds. Refuses recursion and too many values."""
    line = event.start_mark.line + 1
    if any(each.anchor == event.anchor for each in opened):
        raise InputError(
            f"line {line}: the alias '*{event.anchor}' stands inside of what it names; write the values out"
        )
    size = sizes.get(str(event.anchor), 1)
    if values + size > MOST_VALUES:
        raise InputError(
            f"line {line}: with its aliases written out this has more than {MOST_VALUES:,} values; write fewer aliases"
        )
    return size


def _refuse_depth(opened: list[_Open], event: yaml.Event) -> None:
    if len(opened) > DEEPEST:
        raise InputError(f"line {event.start_mark.line + 1} is nested deeper than {DEEPEST} levels; write it flatter")
