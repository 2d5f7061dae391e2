"""Reads prompts from a JSON lines or parquet file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from pathlib import Path

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Message, Prompt

FIELDS = ("id", "prompt", "messages", "answer", "topic", "level", "difficulty", "quality", "source")
LABELS = ("level", "difficulty", "quality")

Record = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Records as read from a source, with the names that error messages need."""

    origin: str  # source as the user named it
    stem: str  # default `source` of the prompts
    columns: Sequence[str]  # all columns of the source, also those that were not read
    records: Sequence[tuple[str, Record]]  # position (for messages) and content


def checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Maps each prompt field to its column. Fields without a mapping use their own name.

    Raises:
        InputError: if `columns` names an unknown field.
    """
    given = dict(columns or {})
    for field in given:
        if field not in FIELDS:
            raise InputError(f"columns names the field {field!r}; write one of {', '.join(FIELDS)}")
    return {field: given.get(field, field) for field in FIELDS}


def used_columns(columns: Mapping[str, str] | None, present: Sequence[str], origin: str) -> list[str]:
    """Selects the columns that prompts need.

    Raises:
        InputError: if `columns` names an unknown field, or a column that does not exist.
    """
    names = checked_columns(columns)
    for field in columns or {}:
        if names[field] not in present:
            raise InputError(
                f"columns maps {field!r} to {names[field]!r}, which {origin} lacks; its columns are {', '.join(present)}"
            )
    return [name for name in present if name in names.values()]


def prompts_from_table(table: Table, columns: Mapping[str, str] | None) -> list[Prompt]:
    """Converts records to prompts, in the same order.

    Args:
        table: Records to convert.
        columns: Column name for each prompt field, where the names differ.

    Raises:
        InputError: if there is no record, a column is missing, or a record lacks a required field.
    """
    if not table.records:
        raise InputError(f"{table.origin} is empty; give it at least one prompt")
    used_columns(columns, table.columns, table.origin)
    names = checked_columns(columns)
    if not {names["prompt"], names["messages"]} & set(table.columns):
        raise InputError(
            f"{table.origin} has no column 'prompt' or 'messages', only {', '.join(table.columns)}; "
            f'map one of them, as columns={{"prompt": "{table.columns[0]}"}}'
        )
    prompts = [_prompt(record, names, place, table.stem, row) for row, (place, record) in enumerate(table.records)]
    _check_unique(prompts, [place for place, _ in table.records])
    return prompts


def _check_unique(prompts: Sequence[Prompt], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for prompt, place in zip(prompts, places, strict=True):
        if prompt.uid in seen:
            raise InputError(f"id {prompt.uid!r} stands at {seen[prompt.uid]} and at {place}; make ids unique")
        seen[prompt.uid] = place


def _prompt(record: Record, names: Mapping[str, str], place: str, stem: str, row: int) -> Prompt:
    source = _text(record.get(names["source"])) or stem
    topic = _text(record.get(names["topic"]))
    prompt = Prompt(
        uid=_text(record.get(names["id"])) or f"{source}/{row}",
        messages=_messages(record, names, place),
        answer=_answer(record, names["answer"], place),
        source=source,
        topic=topic or None,
        labels=_labels(record, names, place),
    )
    _refuse_half_characters(prompt, place)
    return prompt


def _labels(record: Record, names: Mapping[str, str], place: str) -> dict[str, float]:
    values = {label: _number(record.get(names[label]), names[label], place) for label in LABELS}
    return {label: value for label, value in values.items() if value is not None}


def _refuse_half_characters(prompt: Prompt, place: str) -> None:
    contents = [each["content"] for each in prompt.messages]
    for text in (prompt.uid, *contents, prompt.answer, prompt.source, prompt.topic or ""):
        if not is_whole(text):
            shown = ascii(text[:60])
            raise InputError(f"{place}: {shown} holds half a character (a lone surrogate); write the whole one or none")


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _answer(record: Record, column: str, place: str) -> str:
    value = record.get(column)
    if isinstance(value, list | tuple) and all(isinstance(each, str | int | float) for each in value):
        # Benchmarks with several correct values give them as a list.
        value = ", ".join(map(_digits, value))
    if isinstance(value, Mapping | list | tuple):
        raise InputError(f"{place}: {column!r} is {value!r}; an answer is a text or a number, or a list of them")
    if not _text(value):
        raise InputError(f"{place}: no answer in column {column!r}; write one, or map `answer` to the column it is in")
    return _digits(value)


def _digits(value: object) -> str:
    """Writes a number without an exponent (0.00001, not 1e-05), and anything else as its text."""
    number = isinstance(value, float) and math.isfinite(value)
    return format(Decimal(repr(value)), "f") if number else str(value)


def _messages(record: Record, names: Mapping[str, str], place: str) -> tuple[Message, ...]:
    """Returns the chat of a record: its `messages`, or else its `prompt` (a text or a list of messages)."""
    chat = record.get(names["messages"])
    value = record.get(names["prompt"]) if chat is None else chat
    if isinstance(value, str) and value.strip():
        return ({"role": "user", "content": value},)
    if isinstance(value, list | tuple) and value:
        return _checked_chat(value, place)
    raise InputError(
        f"{place}: no prompt in column {names['prompt']!r} (a text) or {names['messages']!r} (a list of messages)"
    )


def _checked_chat(chat: Sequence[object], place: str) -> tuple[Message, ...]:
    messages: list[Message] = []
    for message in chat:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f'{place}: message {message!r}; write {{"role": "user", "content": "a text"}}')
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{place}: the last message is the assistant's own answer; end the messages with the user's")
    return tuple(messages)


def _number(value: object, column: str, place: str) -> float | None:
    """Converts a label to a number: 5, "5" and "Level 5" give 5.0; null, NaN, "" and "Level ?" give None (unknown)."""
    if isinstance(value, str):
        found = re.fullmatch(r"[A-Za-z ]*([+-]?\d+(?:\.\d+)?)|[A-Za-z ]*\?|\s*", value.strip())
        if found is None:
            raise InputError(f"{place}: {column!r} is {value!r}; write a number, 'Level 5' or null")
        value = float(found[1]) if found[1] else None
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise InputError(f"{place}: {column!r} is {value!r}; write a number or null")
    number = as_float(value)
    if number is None and isinstance(value, int):
        raise InputError(f"{place}: {column!r} is a whole number beyond all floats; write a smaller one")
    return number


def as_float(value: float) -> float | None:
    """Converts a number to a float; returns None if it is NaN, infinite, or an integer too large for a float."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_whole(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. Lone surrogates (from broken JSON escapes) can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class FilePrompts(PromptSource):
    """Prompts from a `.jsonl` or `.parquet` file.

    A record has `prompt` (a text, or a list of messages) or `messages`, and `answer`. The fields `id`, `topic`,
    `level`, `difficulty`, `quality` and `source` are optional. `messages` takes precedence over `prompt`.

    Args:
        path: Path of the `.jsonl` or `.parquet` file.
        columns: Column name for each prompt field, where the names differ, such as {"answer": "final_answer"}.
        limit: Number of prompts to read from the start of the file; null reads all.
    """

    def __init__(self, path: str, columns: dict[str, str] | None = None, limit: Count | None = None) -> None:
        self.path = path
        self.columns = columns
        self.limit = limit
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the prompts in the order of the file.

        Raises:
            InputError: if the file is missing, empty or of another format, or a record is invalid (named by its line).
        """
        path = Path(self.path)
        checked_columns(self.columns)
        if not path.is_file():
            kind = "does not exist"
            if path.exists():
                kind = "is a folder" if path.is_dir() else "is no file but a pipe or device"
            raise InputError(f"prompts file {path} {kind}; write a .jsonl or .parquet file")
        readers = {".jsonl": self._json_lines, ".parquet": self._parquet}
        if path.suffix not in readers:
            raise InputError(
                f"prompts file {path} ends in {path.suffix!r}; prompts are read from JSON lines (.jsonl: one "
                '{"prompt": ..., "answer": ...} a line) and parquet (.parquet); save it in one of these forms'
            )
        try:
            table = readers[path.suffix](path)
        except OSError as error:  # for example, no permission or a damaged disk
            raise InputError(f"prompts file {path} can't be read: {error.strerror or first_line(error)}") from error
        return prompts_from_table(table, self.columns)

    def _json_lines(self, path: Path) -> Table:
        records = list(islice(_json_lines(path), self.limit))
        present = list(dict.fromkeys(name for _, record in records for name in record))
        return Table(str(path), path.stem, present, records)

    def _parquet(self, path: Path) -> Table:
        """Reads only the columns that prompts need, because data sets often contain long solutions too."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(path) as table:
                present = table.schema_arrow.names
                used = used_columns(self.columns, present, str(path))
                rows = (row for batch in table.iter_batches(columns=used) for row in batch.to_pylist())
                places = (f"{path.name}:{number}" for number in count(1))  # rows count from 1, like lines
                records = list(islice(zip(places, rows, strict=False), self.limit))
        except (ArrowException, OSError, UnicodeDecodeError) as error:  # depends on where the damage is
            raise InputError(f"prompts file {path} is no readable parquet file: {first_line(error)}") from error
        return Table(str(path), path.stem, present, records)


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields position and record of every line that is not blank."""
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
