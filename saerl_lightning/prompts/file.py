"""Reads prompts from a file (JSON lines, JSON, CSV, TSV, parquet, Arrow) or a folder that `Dataset.save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.prompts import arrow, lines, saved
from saerl_lightning.prompts.places import ENDINGS, is_saved
from saerl_lightning.prompts.source import PromptSource, Reading
from saerl_lightning.prompts.table import RecordTable, Row, checked_columns, prompts_from_table
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt

HEAD = 100  # rows that are read before it is said which columns there are


class FilePrompts(PromptSource):
    """Prompts from a file, or from a folder that `Dataset.save_to_disk` wrote.

    Rows are recognised by their columns: GSM8K, MATH, DeepMath, TRL, verl, open-instruct, or our own form, which is
    `prompt` (a text, or a list of messages) or `messages`, and `answer`, with optional `id`, `topic`, `level`,
    `difficulty`, `quality` and `source`. All columns are kept for rewards.

    Args:
        path: Path of a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or of a saved data-set folder.
        columns: Column of each prompt field where it is not recognised, such as {"answer": "meta.final_answer"}; a
            dotted path leads into nested columns.
        limit: Number of prompts to read from the start of the file; null reads all.
        split: Split of a saved DatasetDict; null takes `train`, or the only one.
    """

    def __init__(
        self,
        path: str,
        columns: dict[str, str] | None = None,
        limit: Count | None = None,
        split: str | None = None,
    ) -> None:
        self.path = path
        self.columns = columns
        self.limit = limit
        self.split = split
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the prompts in the order of the file.

        Raises:
            InputError: if the file is missing, empty or of another format, or a row is invalid (named by its place).
        """
        return self.read().prompts

    def read(self) -> Reading:
        """Reads the prompts, and says as what their rows were read."""
        path = Path(self.path)
        checked_columns(self.columns)
        try:
            return prompts_from_table(self._table(path), self.columns)
        except OSError as error:  # for example, no permission or a damaged disk
            raise InputError(f"prompts file {path} can't be read: {error.strerror or first_line(error)}") from error

    def _table(self, path: Path) -> RecordTable:
        if is_saved(path):
            return saved.table(path, self.split, self.limit)
        if self.split is not None:
            raise InputError(f"{path} has no splits, and split is {self.split!r}; write null")
        if not path.is_file():
            kind = "does not exist"
            if path.exists():
                kind = "is a folder" if path.is_dir() else "is no file but a pipe or device"
            raise InputError(
                f"prompts file {path} {kind}; write a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, a folder of "
                "Dataset.save_to_disk, or the name of a data set on the hub as owner/name"
            )
        if path.suffix in (".parquet", ".arrow"):
            return arrow.table(path, self.limit)
        if path.suffix not in lines.READERS:
            raise InputError(
                f"prompts file {path} ends in {path.suffix!r}; prompts are read from {', '.join(ENDINGS)}, such as JSON "
                'lines (.jsonl: one {"prompt": ..., "answer": ...} a line); save it in one of these forms'
            )
        return self._texts(path)

    def _texts(self, path: Path) -> RecordTable:
        """Reads rows of text one by one. The columns are those of the first rows, or of all if a mapped one is not there."""
        rows = islice(lines.READERS[path.suffix](path), self.limit)
        head = list(islice(rows, HEAD))
        present = _columns(head)
        if any(
            mapped.split(".")[0] not in present and mapped not in present for mapped in (self.columns or {}).values()
        ):
            head += rows
            present = _columns(head)
        first = head[0].content if head else {}

        def all_rows(needed: object) -> Iterator[Row]:
            yield from head
            yield from rows

        return RecordTable(str(path), path.stem, present, first, all_rows)


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.content))
