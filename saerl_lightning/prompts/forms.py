r"""Forms of data sets that are recognised by their columns: GSM8K, MATH, DeepMath, TRL, verl, open-instruct, and ours.

Sources: the data cards of openai/gsm8k, zwhe99/DeepMath-103K and allenai/RLVR-GSM; MATH (arXiv:2103.03874); TRL's guide
"Dataset formats and types"; verl's `examples/data_preprocess` and `RLHFDataset`; open-instruct's `dataset_transformation`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

Record = Mapping[str, object]

LABELS = ("level", "difficulty", "quality")
FIELDS = ("id", "prompt", "messages", "answer", "topic", *LABELS, "source")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def value_at(record: Record, path: str) -> object:
    """Returns the value at a dotted path, as `reward_model.ground_truth` or `answers.0`; None if there is none.

    A column whose own name has a dot is found by that name.
    """
    if path in record:
        return record[path]
    value: object = record
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def column_of(path: str, columns: Collection[str]) -> str:
    """Returns the column that a dotted path begins in."""
    return path if path in columns else path.split(".")[0]


# -- answers inside of a text -----------------------------------------------------------------------------------------


def after_hashes(text: str) -> str | None:
    """Returns what follows the last `####`, without commas between digits (GSM8K); None if there is no such mark."""
    _, mark, answer = text.rpartition("####")
    return re.sub(r"(?<=\d),(?=\d)", "", answer.strip()) if mark else None


def last_box(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{...}`, or of `\boxed 5`; None if there is none that is closed."""
    for start in reversed([found.end() for found in _BOX.finditer(text)]):
        if not text.startswith("{", start):
            return re.split(r"[\s$.,]", text[start:], maxsplit=1)[0] or None
        depth = 0
        for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return text[start + 1 : start + brace.start()]
    return None


@dataclass(frozen=True)
class Mark:
    """How the answer is marked in the text of its column."""

    find: Callable[[str], str | None]  # the answer in a text; None if it is not there
    said: str = ""


ALONE, MAPPED = "prompts without answers", "mapped columns"  # forms of tables that are of no known one

WHOLE = Mark(lambda text: text)
HASHES = Mark(after_hashes, " (after '####')")
BOX = Mark(last_box, " (its last box)")
BOX_OR_WHOLE = Mark(lambda text: last_box(text) or text, " (its last box, if any)")  # a TRL `solution` may be either


# -- forms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where the fields of a prompt stand in the rows of one data set."""

    form: str
    paths: Mapping[str, str]  # field -> dotted path
    mark: Mark = WHOLE
    strict: frozenset[str] = frozenset()  # labels that must be numbers; others are labels only where they are

    def mapped(self, given: Mapping[str, str]) -> Layout:
        """Returns the layout with the fields that the user mapped; a mapped answer is taken as it is."""
        paths = {**self.paths, **given}
        if "prompt" in given and "messages" not in given:
            paths.pop("messages", None)  # otherwise `messages` takes precedence
        mark, form = (
            (WHOLE, MAPPED if self.form == ALONE else self.form) if "answer" in given else (self.mark, self.form)
        )
        return replace(self, form=form, paths=paths, mark=mark, strict=self.strict | given.keys())

    def columns(self, present: Collection[str]) -> list[str]:
        """Returns the columns that prompts are made of, in the order of the table."""
        needed = {column_of(path, present) for path in self.paths.values()}
        return [name for name in present if name in needed]

    def described(self) -> str:
        """Returns which fields are read from where, for the line that says how a data set was read."""
        required = {"prompt": "", "answer": self.mark.said}
        return ", ".join(
            field if field == path and field not in required else f"{field} from {path}{required.get(field, '')}"
            for field, path in self.paths.items()
        )


@dataclass(frozen=True)
class Form:
    """A known form of a data set.

    `prompt` and `answer` are required. Of several paths for a field, the first that exists is read.
    """

    name: str
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    mark: Mark = WHOLE
    ours: bool = False

    def layout(self, columns: Collection[str], first: Record) -> Layout | None:
        """Returns where the fields stand; None if the rows are not of this form.

        Args:
            columns: Names of the columns.
            first: First row, which must show the answer.
        """
        wanted = {"prompt": self.prompt, "answer": self.answer, **self.others}
        found = {field: next((p for p in paths if _there(p, columns, first)), None) for field, paths in wanted.items()}
        answer = found["answer"]
        if answer is None or found["prompt"] is None:
            return None
        text = value_at(first, answer)
        if self.mark is not WHOLE and (not isinstance(text, str) or self.mark.find(text) is None):
            return None
        paths = {field: path for field, path in found.items() if path is not None}
        if paths["prompt"] == "messages":  # read as our field of that name, whose errors speak of messages
            paths = {"messages": paths.pop("prompt"), **paths}
        return Layout(self.name, paths, self.mark, frozenset(LABELS if self.ours else ()))


def _there(path: str, columns: Collection[str], first: Record) -> bool:
    return path in columns or ("." in path and value_at(first, path) is not None)


OWN = {name: (name,) for name in ("topic", *LABELS, "source")}
OURS = Form(
    "prompt and answer (ours, TRL's)",
    ("prompt", "messages"),
    ("answer",),
    {"id": ("id",), "messages": ("messages",), **OWN},
    ours=True,
)
# The first form that fits is taken: those with the most telling columns stand first.
FORMS = (
    Form(
        "verl",
        ("prompt",),
        ("reward_model.ground_truth",),
        {**OWN, "topic": ("topic", "ability"), "source": ("data_source",)},
    ),
    Form("open-instruct", ("messages",), ("ground_truth",), {**OWN, "source": ("dataset", "source")}),
    OURS,
    Form("TRL", ("prompt",), ("solution", "ground_truth"), OWN, BOX_OR_WHOLE),
    Form("GSM8K", ("question",), ("answer",), OWN, HASHES),
    Form("DeepMath", ("question",), ("final_answer",), OWN),
    Form("question and answer", ("question", "problem"), ("answer",), {**OWN, "topic": ("topic", "type", "subject")}),
    Form("MATH", ("problem",), ("solution",), {**OWN, "topic": ("topic", "type", "subject")}, BOX),
)
OPEN_INSTRUCT = FORMS[1].name


def fitting(columns: Sequence[str], first: Record) -> list[Layout]:
    """Returns the layouts of all forms that the rows fit; the first is the one to take."""
    return [layout for form in FORMS if (layout := form.layout(columns, first)) is not None]
