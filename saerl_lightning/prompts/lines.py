"""Reads rows from text files: JSON lines, JSON, CSV and TSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.columns import JsonRow
from saerl_lightning.prompts.table import Row

LONGEST_CELL = 2**27  # characters; the csv module's own limit of 131,072 is below what long solutions have


def _json_lines(path: Path) -> Iterator[Row]:
    """Yields the object of every line that is not blank."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(lines, path), start=1):
            if line.strip():
                place = f"{path.name}:{number}"
                yield Row(place, _json_object(line, place), JsonRow(line.strip().encode()))


def _json_list(path: Path) -> Iterator[Row]:
    """Yields the objects of a JSON list, or of JSON lines in a file of the same ending."""
    with path.open(encoding="utf-8-sig") as file:
        begin = next((line.lstrip()[:1] for line in _decoded(file, path) if line.strip()), "")
    if begin != "[":
        yield from _json_lines(path)
        return
    with path.open(encoding="utf-8-sig") as file:
        rows = _parsed("".join(_decoded(file, path)), path.name)
    for number, row in enumerate(rows if isinstance(rows, list) else (), start=1):
        place = f"{path.name}, entry {number}"
        if not isinstance(row, dict):
            raise InputError(f'{place}: {row!r:.80}; write a list of objects, as [{{"prompt": …, "answer": …}}]')
        yield Row(place, row, JsonRow(json.dumps(row).encode()))


def _cells(path: Path, separators: str) -> Iterator[Row]:
    """Yields the rows of a table with a header. Every value is a text; an empty cell is null.

    Args:
        path: File of the table.
        separators: Marks that may stand between cells; the first one that parts the header is taken.
    """
    before, number = csv.field_size_limit(LONGEST_CELL), 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_decoded(file, path), delimiter=_separator(path, separators), strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InputError(f"{path.name}:1: two columns have the name {twice[:60]!r}; give each its own")
            number = reader.line_num + 1
            for cells in reader:
                place, number = f"{path.name}:{number}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{place}: {len(cells)} cells under a header of {len(header)}; quote cells that hold "
                        f"{reader.dialect.delimiter!r}, quotes or line ends"
                    )
                content = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                yield Row(place, content, JsonRow(json.dumps(content, ensure_ascii=False).encode()))
    except csv.Error as error:
        raise InputError(f"{path.name}: {error} (before line {number}); quote cells as CSV does") from error
    finally:
        csv.field_size_limit(before)


def _separator(path: Path, separators: str) -> str:
    """The mark between the cells of a header; spreadsheets write `;` where a comma is the decimal mark."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(_decoded(file, path), "")
    parted = (each for each in separators if len(next(csv.reader([header], delimiter=each), [])) > 1)
    return next(parted, separators[0])


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path} is not UTF-8 text ({error}); save it as UTF-8") from error


def _json_object(line: str, place: str) -> dict[str, object]:
    record = _parsed(line, place)
    if not isinstance(record, dict):
        raise InputError(f'{place}: {line.strip()[:80]}; write one object a line, as {{"prompt": …, "answer": …}}')
    return record


def _parsed(text: str, place: str) -> object:
    shown = text.strip()[:80]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: broken JSON ({error}): {shown}") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply: {shown}…; write it flatter") from error
    except ValueError as error:
        raise InputError(f"{place}: a number of thousands of digits: {shown}…; write it as a text") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": partial(_cells, separators=",;\t"),
    ".tsv": partial(_cells, separators="\t"),
}
