"""Converts the rows of a table to prompts: by a known form of data sets, or by a mapping of columns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.forms import (
    ALONE,
    FIELDS,
    LABELS,
    OPEN_INSTRUCT,
    Layout,
    Record,
    column_of,
    fitting,
    value_at,
)
from saerl_lightning.prompts.source import Reading
from saerl_lightning.records import Message, Prompt

MOST_NAMED = 12  # columns that a message names


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    place: str  # for messages, such as "train.jsonl:3"
    content: Record  # at least the columns that prompts are made of
    columns: Mapping[str, object]  # all columns, for rewards


@dataclass(frozen=True)
class RecordTable:
    """A table of a source, with the names that error messages need."""

    origin: str  # source as the user named it
    stem: str  # default `source` of the prompts
    columns: Sequence[str]  # all columns
    first: Record  # first row; {} if there is none
    rows: Callable[[Sequence[str]], Iterator[Row]]  # rows with at least the given columns


def checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the mapping of prompt fields to columns.

    Raises:
        InputError: if `columns` names an unknown field.
    """
    for field in columns or {}:
        if field not in FIELDS:
            raise InputError(f"columns names the field {field!r}; write one of {', '.join(FIELDS)}")
    return dict(columns or {})


def prompts_from_table(table: RecordTable, columns: Mapping[str, str] | None) -> Reading:
    """Converts rows to prompts, in the same order.

    Args:
        table: Rows to convert.
        columns: Dotted path of each prompt field, where the form does not tell it or another is wanted.

    Raises:
        InputError: if there is no row, a column is missing, the form is unknown, or a row lacks a required field.
    """
    given = checked_columns(columns)
    if not table.first:
        raise InputError(f"{table.origin} is empty; give it at least one prompt")
    for field, path in given.items():
        if column_of(path, table.columns) not in table.columns:
            raise InputError(
                f"columns maps {field!r} to {path!r}, which {table.origin} lacks; its columns are {named(table.columns)}"
            )
    known = fitting(table.columns, table.first)
    layout = (known[0] if known else _own(table.columns)).mapped(given)
    if not {"prompt", "messages"} & layout.paths.keys():
        raise InputError(_unknown(table, layout))
    prompts: list[Prompt] = []
    places: dict[str, str] = {}  # uid -> where it stands
    for number, row in enumerate(table.rows(layout.columns(table.columns))):
        prompt = _prompt(row, layout, table.stem, number)
        if prompt.uid in places:
            raise InputError(f"id {prompt.uid!r} stands at {places[prompt.uid]} and at {row.place}; make ids unique")
        places[prompt.uid] = row.place
        prompts.append(prompt)
    return Reading(prompts, (_said(table, layout, known, given, len(prompts)),))


def _own(columns: Sequence[str]) -> Layout:
    """Returns the layout of our own form with the fields that are there: prompts alone, unless an answer is mapped."""
    return Layout(ALONE, {field: field for field in FIELDS if field in columns}, strict=frozenset(LABELS))


def named(columns: Sequence[str]) -> str:
    """Lists columns for a message, the first twelve by name."""
    more = f" and {len(columns) - MOST_NAMED} more" if len(columns) > MOST_NAMED else ""
    return ", ".join(_short(name, 40) for name in columns[:MOST_NAMED]) + more


def _short(value: object, length: int = 30) -> str:
    """Returns the beginning of a value, on one line."""
    text = value if isinstance(value, str) else repr(value)
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _unknown(table: RecordTable, layout: Layout) -> str:
    """Says that the form of a table is not known, with its first row and the flags that map its columns."""
    own = [name for name in table.columns if name not in layout.paths.values()]
    spare = [path for name in own for path in _texts_in(table.first.get(name), name)] or ["COLUMN"]
    missing = [] if {"prompt", "messages"} & layout.paths.keys() else ["prompt"]
    missing += [] if "answer" in layout.paths else ["answer"]
    pairs = list(zip(missing, dict.fromkeys([spare[0], spare[-1]]), strict=False))
    flags = " ".join(f"--data.columns.{field} {_short(path, 60)}" for field, path in pairs)
    shown = ", ".join(f"{_short(name)}='{_short(table.first.get(name))}'" for name in table.columns[:6])
    more = f" and {len(table.columns) - 6} more" if len(table.columns) > 6 else ""
    return (
        f"{table.origin}: no known form (no {' and no '.join(missing)}); its first row: {shown}{more}; say which columns "
        f"these are, as {flags} (in YAML, columns: {{{', '.join(f'{a}: {_short(b, 60)}' for a, b in pairs)}}})"
    )


def _texts_in(value: object, path: str) -> Iterator[str]:
    """Dotted paths of what can be a prompt or an answer in a value: no containers, and no speakers of a conversation."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key not in ("role", "from"):
                yield from _texts_in(each, f"{path}.{key}")
    elif isinstance(value, list | tuple) and value:
        for number, each in enumerate(value):
            yield from _texts_in(each, f"{path}.{number}")
    else:
        yield path


def _said(table: RecordTable, layout: Layout, known: Sequence[Layout], given: Mapping[str, str], count: int) -> str:
    """Says in one line as what the rows were read, what else they fit, and what is left for rewards."""
    used = set(layout.columns(table.columns))
    others = [name for name in table.columns if name not in used]
    line = f"{table.origin}: {count:,} row{'s' * (count != 1)} read as {layout.form}: {layout.described()}"
    for other in known[1:]:
        if not {"prompt", "messages", "answer"} & given.keys() and not _same(layout, other):
            line += f"; they fit {other.form} too ({other.described()}): to take that, map columns"
            break
    return line + (f"; other columns, which rewards can read: {named(others)}" if others else "")


def _same(one: Layout, other: Layout) -> bool:
    asked = [{layout.paths.get(name) for name in ("prompt", "messages")} - {None} for layout in (one, other)]
    return bool(asked[0] & asked[1]) and one.paths["answer"] == other.paths["answer"]


def _prompt(row: Row, layout: Layout, stem: str, number: int) -> Prompt:
    values = {field: value_at(row.content, path) for field, path in layout.paths.items()}
    source = _text(values.get("source")) or stem
    prompt = Prompt(
        uid=_text(values.get("id")) or f"{source}/{number}",
        messages=_messages(values, layout, row.place),
        answer=_answer(values.get("answer"), layout, row.place),
        source=source,
        topic=_text(values.get("topic")) or None,
        labels=_labels(values, layout, row.place),
        columns=row.columns,
    )
    _refuse_half_characters(prompt, row.place)
    return prompt


def _labels(values: Record, layout: Layout, place: str) -> dict[str, float]:
    labels: dict[str, float] = {}
    for label in LABELS:
        try:
            number = _number(values.get(label), layout.paths.get(label, label), place)
        except InputError:
            if label in layout.strict:
                raise
            continue  # in another's form, the column of that name is no label of ours; rewards can still read it
        if number is not None:
            labels[label] = number
    return labels


def _refuse_half_characters(prompt: Prompt, place: str) -> None:
    contents = [each["content"] for each in prompt.messages]
    for text in (prompt.uid, *contents, prompt.answer, prompt.source, prompt.topic or ""):
        if not is_whole(text):
            shown = ascii(text[:60])
            raise InputError(f"{place}: {shown} holds half a character (a lone surrogate); write the whole one or none")


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _answer(value: object, layout: Layout, place: str) -> str:
    if "answer" not in layout.paths:
        return ""  # rewards that compare with an answer refuse the prompt
    column = layout.paths["answer"]
    if isinstance(value, list | tuple) and all(isinstance(each, str | int | float) for each in value):
        # Benchmarks with several correct values give them as a list.
        value = ", ".join(map(_digits, value))
    if isinstance(value, Mapping | list | tuple):
        raise InputError(f"{place}: {column!r} is {value!r:.200}; an answer is a text or a number, or a list of them")
    if not _text(value) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{place}: no answer in column {column!r}; write one, or map `answer` to the column it is in")
    found = layout.mark.find(_digits(value))
    if not _text(found):
        raise InputError(
            f"{place}: {column!r} does not say its answer as {layout.form} does ({layout.described()}): "
            f"'{_short(value, 60)}'; write it so, or map `answer` to another column"
        )
    return str(found)


def _digits(value: object) -> str:
    """Writes a number without an exponent (0.00001, not 1e-05), and anything else as its text."""
    number = isinstance(value, float) and math.isfinite(value)
    return format(Decimal(repr(value)), "f") if number else str(value)


def _messages(values: Record, layout: Layout, place: str) -> tuple[Message, ...]:
    """Returns the chat of a row: its `messages`, or else its `prompt` (a text or a list of messages)."""
    chat = values.get("messages")
    value = values.get("prompt") if chat is None else chat
    if isinstance(value, str) and value.strip():
        return ({"role": "user", "content": value},)
    if isinstance(value, list | tuple) and value:
        return _checked_chat(value, place, layout.form == OPEN_INSTRUCT)
    prompt, messages = (layout.paths.get(name, name) for name in ("prompt", "messages"))
    raise InputError(f"{place}: no prompt in column {prompt!r} (a text) or {messages!r} (a list of messages)")


def _checked_chat(chat: Sequence[object], place: str, without_answer: bool) -> tuple[Message, ...]:
    messages: list[Message] = []
    for message in chat:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f'{place}: message {message!r:.200}; write {{"role": "user", "content": "a text"}}')
        messages.append({"role": role, "content": content})
    if without_answer and len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages.pop()  # data for fine-tuning holds the answer as well; open-instruct samples it anew
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
