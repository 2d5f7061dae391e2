"""Reads prompts from rows in memory: a pandas or polars frame, a Dataset, an Arrow table, or a list of mappings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.arrow import from_arrow
from saerl_lightning.prompts.columns import JsonRow
from saerl_lightning.prompts.source import PromptSource, Reading
from saerl_lightning.prompts.table import RecordTable, Row, checked_columns, prompts_from_table
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    import pyarrow as pa


class FramePrompts(PromptSource):
    """Prompts from rows in memory, recognised by their columns as the rows of a file are.

    In Python, `train=frame` of a datamodule stands for `train=FramePrompts(frame)`.

    Args:
        rows: Pandas or polars DataFrame, datasets.Dataset, pyarrow Table, or list of mappings from column to value.
        columns: Column of each prompt field where it is not recognised, such as {"answer": "meta.final_answer"}; a
            dotted path leads into nested columns.
        limit: Number of rows to take from the start; null takes all.
        name: Name of the prompts in messages, and in ids and sources where the rows have none.
    """

    def __init__(
        self,
        rows: Any,
        columns: dict[str, str] | None = None,
        limit: Count | None = None,
        name: str = "frame",
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.limit = limit
        self.name = name
        require_in_range(self)
        if not is_frame(rows):
            raise InputError(
                f"FramePrompts.rows is {type(rows).__name__}; give a DataFrame, a Dataset, an Arrow table or a list of "
                'mappings, as [{"prompt": "What is 1 + 1?", "answer": "2"}]'
            )

    def load(self) -> list[Prompt]:
        """Converts the rows to prompts, in their order.

        Raises:
            InputError: if there is no row, the columns are not recognised, or a row is invalid (named by its number).
        """
        return self.read().prompts

    def read(self) -> Reading:
        """Converts the rows to prompts, and says as what they were read."""
        checked_columns(self.columns)
        if isinstance(self.rows, Sequence):
            return prompts_from_table(self._records(self.rows[: self.limit]), self.columns)
        return prompts_from_table(from_arrow(_arrow(self.rows), self.name, self.name, self.limit), self.columns)

    def _records(self, rows: Sequence[Mapping[str, object]]) -> RecordTable:
        columns = list(dict.fromkeys(str(name) for row in rows for name in row))

        def read(needed: object) -> Iterator[Row]:
            for number, row in enumerate(rows, 1):
                kept = JsonRow(json.dumps(dict(row), default=_plain).encode())
                yield Row(f"{self.name}:{number}", dict(kept), kept)

        return RecordTable(self.name, self.name, columns, rows[0] if rows else {}, read)


def is_frame(rows: object) -> bool:
    """Whether an object has rows that `FramePrompts` reads."""
    if isinstance(rows, Sequence):
        return not isinstance(rows, str | bytes) and all(isinstance(row, Mapping) for row in rows)
    return _kind(rows) in {
        ("pandas", "DataFrame"),
        ("polars", "DataFrame"),
        ("datasets", "Dataset"),
        ("pyarrow", "Table"),
    }


def is_splits(rows: object) -> bool:
    """Whether an object is a `datasets.DatasetDict`, which is a mapping as a mixture is."""
    return _kind(rows) == ("datasets", "DatasetDict")


def _plain(value: Any) -> object:
    """What stands for a value that JSON does not have: a number of NumPy's is a number, all else its text."""
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)


def _kind(rows: object) -> tuple[str, str]:
    """Package and class of an object: the package need not be installed to tell what is not from it."""
    kind = type(rows)
    return kind.__module__.partition(".")[0], kind.__name__


def _arrow(rows: Any) -> pa.Table:
    """Rows as an Arrow table, in which what is missing (NaN in pandas) is null.

    Raises:
        InputError: if a column holds values of several kinds.
    """
    import pyarrow as pa

    package, _ = _kind(rows)
    try:
        if package == "pandas":
            return pa.Table.from_pandas(rows, preserve_index=False)
        if package == "datasets":
            return rows.with_format("arrow")[:]
        return rows.to_arrow() if package == "polars" else rows
    except pa.ArrowException as error:
        raise InputError(f"FramePrompts.rows can't be read: {error}; give each column values of one kind") from error
