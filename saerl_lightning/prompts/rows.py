"""Records of a file or a data set become prompts: field names, checks, and messages that name the record.

Pure: knows nothing of files. A record comes with its place ("train.jsonl:12"), so that every complaint can be found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from saerl_lightning.errors import InputError
from saerl_lightning.records import Message, Prompt

FIELDS = ("id", "prompt", "messages", "answer", "topic", "level", "difficulty", "quality", "source")
LABELS = ("level", "difficulty", "quality")

Record = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Records as they were read, with what messages about them need."""

    origin: str  # what the user named
    stem: str  # source of the records that name none
    columns: Sequence[str]  # all of the origin's columns, also those that were not read
    records: Sequence[tuple[str, Record]]  # place and content


def checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Maps every field to the column that holds it; a field without a mapping keeps its own name.

    Raises:
        InputError: if `columns` names a field that prompts don't have.
    """
    given = dict(columns or {})
    for field in given:
        if field not in FIELDS:
            raise InputError(f"columns names the field {field!r}; write one of {', '.join(FIELDS)}")
    return {field: given.get(field, field) for field in FIELDS}


def used_columns(columns: Mapping[str, str] | None, present: Sequence[str], origin: str) -> list[str]:
    """Selects from the columns of an origin those that prompts are made of.

    Raises:
        InputError: if `columns` names a field that prompts don't have, or a column that the origin lacks.
    """
    names = checked_columns(columns)
    for field in columns or {}:
        if names[field] not in present:
            raise InputError(
                f"columns maps {field!r} to {names[field]!r}, which {origin} lacks; its columns are {', '.join(present)}"
            )
    return [name for name in present if name in names.values()]


def prompts_from_table(table: Table, columns: Mapping[str, str] | None) -> list[Prompt]:
    """Turns records into prompts, in their order.

    Args:
        table: the records.
        columns: our field name -> the table's column name, where they differ.

    Raises:
        InputError: if there is no record, a column is missing, or a record lacks what a prompt needs.
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
        value = ", ".join(map(_digits, value))  # benchmarks with several right values list them
    if isinstance(value, Mapping | list | tuple):
        raise InputError(f"{place}: {column!r} is {value!r}; an answer is a text or a number, or a list of them")
    if not _text(value):
        raise InputError(f"{place}: no answer in column {column!r}; write one, or map `answer` to the column it is in")
    return _digits(value)


def _digits(value: object) -> str:
    """A number without an exponent (0.00001, not 1e-05), anything else as its text."""
    number = isinstance(value, float) and math.isfinite(value)
    return format(Decimal(repr(value)), "f") if number else str(value)


def _messages(record: Record, names: Mapping[str, str], place: str) -> tuple[Message, ...]:
    """The chat of a record: its messages, else its prompt (a text, or itself a list of messages)."""
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
    """A label as a number: 5, "5" and "Level 5" are 5.0; null, NaN, "" and "Level ?" are unknown."""
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
    """A number as a float; None where it is NaN, infinite, or an integer beyond all floats."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_whole(text: str) -> bool:
    """Whether a text can be written to a file: half characters (lone surrogates, from broken JSON escapes) can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
