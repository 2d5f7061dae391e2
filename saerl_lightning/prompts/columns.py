"""Rows of a data set as mappings from column to value, which are read when a reward asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


class JsonRow(Mapping[str, object]):
    """A row that is held as JSON text, and parsed when a column is read. A pickle or a copy of it is a plain dict.

    Args:
        text: JSON object, as UTF-8.
    """

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    def __getitem__(self, name: str) -> object:
        """Returns the value of a column."""
        return _parsed(self._text)[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the columns."""
        return iter(_parsed(self._text))

    def __len__(self) -> int:
        """Returns the number of columns."""
        return len(_parsed(self._text))

    def __reduce__(self) -> tuple[type, tuple[dict[str, object]]]:
        """Pickles and copies as a plain dict."""
        return dict, (dict(self),)


# The columns of a row are read one after the other, so that one parsed row is enough to parse each row once.
@lru_cache(maxsize=1)
def _parsed(text: bytes) -> dict[str, object]:
    return json.loads(text)


class TableColumns:
    """Columns of an Arrow table, each read when the first of its values is asked for, and kept from then on.

    Args:
        names: Names of the columns, in their order.
        read: Function that reads the column of a name.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], pa.ChunkedArray]) -> None:
        self.names = tuple(names)
        self._read = read
        self._held: dict[str, pa.ChunkedArray] = {}
        self._reading = Lock()

    def value(self, name: str, row: int) -> object:
        """Returns one value, with the types of JSON: dates, decimals and bytes become text.

        Raises:
            KeyError: if there is no such column.
            InputError: if the column can no longer be read.
        """
        if name not in self.names:
            raise KeyError(name)
        with self._reading:
            if name not in self._held:
                self._held[name] = self._read(name)
        return _as_json(self._held[name][row].as_py())


class TableRow(Mapping[str, object]):
    """A row of a table whose columns are read when they are needed. A pickle or a copy of it is a plain dict.

    Args:
        columns: Columns of the table.
        row: Position of the row, from 0.
    """

    __slots__ = ("_columns", "_row")

    def __init__(self, columns: TableColumns, row: int) -> None:
        self._columns = columns
        self._row = row

    def __getitem__(self, name: str) -> object:
        """Returns the value of a column."""
        return self._columns.value(name, self._row)

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the columns."""
        return iter(self._columns.names)

    def __len__(self) -> int:
        """Returns the number of columns."""
        return len(self._columns.names)

    def __reduce__(self) -> tuple[type, tuple[dict[str, object]]]:
        """Pickles and copies as a plain dict."""
        return dict, (dict(self),)


def _as_json(value: object) -> object:
    plain = value is None or isinstance(value, str | int | float)
    return value if plain else json.loads(json.dumps(value, default=str))
