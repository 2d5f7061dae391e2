"""Plain text read document by document, from files or the hub, for SAEs: only one document is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.hub import advice, look_up
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt

BATCH = 256  # rows of a parquet file in memory
ENDINGS = (".jsonl", ".txt", ".parquet")


class TextFiles(PromptSource):
    """Text from files, read document by document: JSON lines, parquet, or text with a document a line.

    Args:
        path: Path of a .jsonl, .parquet or .txt file, or a pattern such as `corpus/*.jsonl`, read in alphabetical order.
        column: Column of the text; a .txt file has none.
        limit: Number of documents to read from the start; null reads all.
    """

    def __init__(self, path: str, column: str = "text", limit: Count | None = None) -> None:
        self.path = path
        self.column = column
        self.limit = limit
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads all documents.

        Raises:
            InputError: if there is no such file, or a document is no text.
        """
        return list(self.stream())

    def stream(self) -> Iterator[Prompt]:
        """Yields the documents, in the order of the files."""
        files = [Path(found) for found in sorted(glob(self.path)) if Path(found).is_file()]  # noqa: PTH207 - of any root
        if not files:
            raise InputError(f"there is no text file '{self.path}'; write a file, or a pattern such as corpus/*.jsonl")
        for file in files:
            if file.suffix not in ENDINGS:
                raise InputError(f"'{file}' ends in {file.suffix!r}; text is read from {', '.join(ENDINGS)}")
        places = ((f"{file.name}:{number}", row) for file in files for number, row in enumerate(_rows(file), start=1))
        for place, row in islice(places, self.limit):
            yield Prompt.asking(place, _text(row, self.column, place), "")


class HubText(PromptSource):
    """Text of a data set on the Hugging Face hub, streamed: nothing beyond what is read is downloaded.

    Args:
        path: Name on the hub (`owner/name`), or a local folder that `datasets` can load.
        split: Name of the split.
        name: Configuration of the data set, if it has several.
        column: Column of the text.
        limit: Number of documents to read from the start; null reads the whole split.
        revision: Branch, tag or commit on the hub. Name a commit to make a run reproducible.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        name: str | None = None,
        column: str = "text",
        limit: Count | None = None,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.split = split
        self.name = name
        self.column = column
        self.limit = limit
        self.revision = revision
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads all documents.

        Raises:
            InputError: if the data set or split is unknown, the hub can't be reached, or a document is no text.
        """
        return list(self.stream())

    def stream(self) -> Iterator[Prompt]:
        """Yields the documents in the split's order."""
        from datasets import load_dataset

        look_up(self.path)
        try:
            rows = load_dataset(self.path, name=self.name, split=self.split, revision=self.revision, streaming=True)
            for number, row in enumerate(islice(iter(rows), self.limit), start=1):
                place = f"{self.path}[{self.split}]:{number}"
                yield Prompt.asking(place, _text(row, self.column, place), "")
        except InputError:
            raise
        except (OSError, ValueError) as error:  # includes an unknown data set, split or configuration
            raise InputError(
                f"data set {self.path!r}, split {self.split!r}: {first_line(error)}"
                f"{advice(self.path, 'dataset') or '; check name, split and network'}"
            ) from error


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(file) as table:
            for batch in table.iter_batches(BATCH):
                yield from batch.to_pylist()
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield {"": line.strip()} if file.suffix == ".txt" else _record(line, f"{file.name}:{number}")


def _record(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: broken JSON ({error}): {line[:60]}") from error
    if not isinstance(record, dict):
        raise InputError(f'{place}: {line[:60]}; write one object a line, as {{"text": "..."}}')
    return record


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    text = row.get("", row.get(column))
    if not isinstance(text, str):
        raise InputError(f"{place}: column {column!r} is {text!r:.60}, no text; there are {', '.join(map(str, row))}")
    return text
