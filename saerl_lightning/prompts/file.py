"""Prompts from one file: JSON lines or parquet. Does not download, guess formats or repair records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.rows import Record, Table, checked_columns, prompts_from_table, used_columns
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt


class FilePrompts(PromptSource):
    """Prompts from a `.jsonl` or `.parquet` file.

    A record has `prompt` (a text, or a list of messages) or `messages`, and `answer`; `id`, `topic`, `level`,
    `difficulty`, `quality` and `source` are optional. Where both are given, `messages` is used.

    Args:
        path: the file.
        columns: our field name -> the file's column name, where they differ, as in {"answer": "final_answer"}.
        limit: read this many prompts from the top of the file; null reads all.
    """

    def __init__(self, path: str, columns: dict[str, str] | None = None, limit: Count | None = None) -> None:
        self.path = path
        self.columns = columns
        self.limit = limit
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the file's prompts, in its order.

        Raises:
            InputError: if the file is missing, empty, of another kind, or a record can't be read (named by its line).
        """
        path = Path(self.path)
        checked_columns(self.columns)
        if not path.is_file():
            kind = (
                "is a folder"
                if path.is_dir()
                else "is no file but a pipe or device"
                if path.exists()
                else "does not exist"
            )
            raise InputError(f"prompts file {path} {kind}; write a .jsonl or .parquet file")
        readers = {".jsonl": self._json_lines, ".parquet": self._parquet}
        if path.suffix not in readers:
            raise InputError(
                f"prompts file {path} ends in {path.suffix!r}; prompts are read from JSON lines (.jsonl: one "
                '{"prompt": ..., "answer": ...} a line) and parquet (.parquet); save it in one of these forms'
            )
        try:
            table = readers[path.suffix](path)
        except OSError as error:  # no permission, a broken disk
            raise InputError(f"prompts file {path} can't be read: {error.strerror or _first_line(error)}") from error
        return prompts_from_table(table, self.columns)

    def _json_lines(self, path: Path) -> Table:
        records = list(islice(_json_lines(path), self.limit))
        present = list(dict.fromkeys(name for _, record in records for name in record))
        return Table(str(path), path.stem, present, records)

    def _parquet(self, path: Path) -> Table:
        """Reads only the columns that prompts are made of: data sets often carry long solutions beside them."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(path) as table:
                present = table.schema_arrow.names
                used = used_columns(self.columns, present, str(path))
                rows = (row for batch in table.iter_batches(columns=used) for row in batch.to_pylist())
                places = (f"{path.name}:{number}" for number in count(1))  # rows count from 1, as lines do
                records = list(islice(zip(places, rows, strict=False), self.limit))
        except (ArrowException, OSError, UnicodeDecodeError) as error:  # by where the damage is
            raise InputError(f"prompts file {path} is no readable parquet file: {_first_line(error)}") from error
        return Table(str(path), path.stem, present, records)


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Place and record of every line that is not blank."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(lines, path), start=1):
            if line.strip():
                place = f"{path.name}:{number}"
                yield place, _json_object(line, place)


def _decoded(lines: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path} is not UTF-8 text ({error}); save it as UTF-8") from error


def _json_object(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: broken JSON ({error}): {line.strip()[:80]}") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply: {line.strip()[:80]}…; write it flatter") from error
    except ValueError as error:
        raise InputError(
            f"{place}: a number of thousands of digits: {line.strip()[:80]}…; write it as a text"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f'{place}: {line.strip()[:80]}; write one object a line, as {{"prompt": …, "answer": …}}')
    return record


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
