"""Reads rows from Arrow tables: parquet files, Arrow files, and tables that `datasets` holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.prompts.columns import TableColumns, TableRow
from saerl_lightning.prompts.forms import Record
from saerl_lightning.prompts.table import RecordTable, Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows that are converted at once


def table(path: Path, limit: int | None) -> RecordTable:
    """Reads a parquet or an Arrow file.

    Of a parquet file, only the columns that prompts are made of are read; others are read when a reward asks for them.
    An Arrow file is mapped into memory, and costs none.

    Raises:
        InputError: if the file is not readable.
    """
    return _parquet(path, limit) if path.suffix == ".parquet" else from_arrow(mapped(path), path.name, str(path), limit)


def mapped(path: Path) -> pa.Table:
    """Maps an Arrow file into memory, in the stream form (`datasets`) or the file form.

    Raises:
        InputError: if the file is not readable.
    """
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"prompts file {path} is no readable Arrow file: {first_line(error)[:200]}") from error


def from_arrow(
    content: pa.Table, name: str, origin: str, limit: int | None = None, stem: str | None = None
) -> RecordTable:
    """Makes a table of rows from an Arrow table.

    Args:
        content: Columns and rows.
        name: Name of the source in the places of rows.
        origin: Source as the user named it.
        limit: Number of rows to take from the start; None takes all.
        stem: Default `source` of the prompts; None takes the name without its ending.
    """
    content = content.slice(0, limit)
    columns = TableColumns(content.column_names, content.column)

    def rows(needed: Sequence[str]) -> Iterator[Row]:
        batches = content.select(list(needed)).to_batches(max_chunksize=BATCH)
        yield from _rows((row for batch in batches for row in batch.to_pylist()), columns, name)

    first = dict(TableRow(columns, 0)) if content.num_rows else {}
    return RecordTable(origin, stem or Path(name).stem, content.column_names, first, rows)


def _rows(contents: Iterator[Record], columns: TableColumns, name: str) -> Iterator[Row]:
    for number, content in enumerate(contents):
        yield Row(f"{name}:{number + 1}", content, TableRow(columns, number))  # rows count from 1, like lines


def _stamp(path: Path) -> tuple[int, int]:
    return (known := path.stat()).st_size, known.st_mtime_ns


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged file, which depend on where the damage is, into one line."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts file {path} is no readable parquet file: {first_line(error)}") from error


def _parquet(path: Path, limit: int | None) -> RecordTable:
    from pyarrow.parquet import ParquetFile

    stamp = _stamp(path)

    def read(name: str) -> pa.ChunkedArray:
        if _stamp(path) != stamp:
            raise InputError(f"{path} has changed since its prompts were read, and its column {name!r} is wanted")
        with _readable(path), ParquetFile(path) as file:
            return file.read(columns=[name]).column(name).slice(0, limit)

    def contents(needed: Sequence[str] | None) -> Iterator[Record]:
        with _readable(path), ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=needed):
                yield from batch.to_pylist()

    with _readable(path), ParquetFile(path) as file:
        present = file.schema_arrow.names
    columns = TableColumns(present, read)
    first = next(contents(None), {})
    return RecordTable(
        str(path), path.stem, present, first, lambda needed: islice(_rows(contents(needed), columns, path.name), limit)
    )
