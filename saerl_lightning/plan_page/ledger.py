"""The ledger in a file: one row a prompt, its fate and the reason. Written whole or not at all, and read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import whole_file, whole_folder, write_whole
from saerl_lightning.plan import NOT_SERVED, SamplePlan
from saerl_lightning.records import Prompt

FILE = "ledger.parquet"
FORMAT = 1  # of the file; a reader refuses one that it does not know
EXCERPT = 200  # characters of a prompt that the ledger keeps
COLUMNS = ["row", "uid", "fate", "reason", "cluster", "difficulty", "quality", "batch", "mixed_from", "topic", "text"]
TEXTS = {"uid", "fate", "reason", "topic", "text"}
RATINGS = {"difficulty", "quality"}


@dataclass(frozen=True, eq=False)
class Ledger:
    """What became of every prompt of a pool, in the pool's order."""

    digest: str  # of the plan
    batch_size: int  # P
    uid: np.ndarray  # (N,) texts, as the other columns without a type
    fate: np.ndarray  # "served", "not served" (fills no batch) or "dropped"
    reason: np.ndarray  # "" where served
    cluster: Int[np.ndarray, " N"]  # -1 where nothing clustered
    difficulty: Float[np.ndarray, " N"]  # NaN where nothing rated
    quality: Float[np.ndarray, " N"]  # NaN where nothing rated
    batch: Int[np.ndarray, " N"]  # step that serves the prompt, from 0; -1 for none
    mixed_from: Int[np.ndarray, " N"]  # step it stood in before mixing moved it; -1 where it stayed
    topic: np.ndarray  # "" where unknown
    text: np.ndarray  # how the prompt begins

    @classmethod
    def of(cls, plan: SamplePlan, prompts: Sequence[Prompt], digest: str) -> Ledger:
        """The ledger of a plan over the pool `prompts`."""
        columns = {name: values for name, values in plan.ledger().items() if name != "row"}
        texts = {
            "uid": _texts(prompt.uid for prompt in prompts),
            "topic": _texts(prompt.topic or "" for prompt in prompts),
            "text": _texts(excerpt(prompt.text) for prompt in prompts),
        }
        return cls(digest, plan.batch_size, **columns, **texts)

    def __len__(self) -> int:
        """Prompts in the pool (N)."""
        return len(self.uid)

    @property
    def batches(self) -> int:
        """Steps of one epoch (B)."""
        return int(self.batch.max(initial=NOT_SERVED)) + 1

    @property
    def served(self) -> np.ndarray:
        """Which prompts are served, (N,)."""
        return self.batch != NOT_SERVED

    @property
    def planned(self) -> np.ndarray:
        """Which prompts are not dropped, (N,): the served ones and the few that fill no batch."""
        return self.fate != "dropped"

    def column(self, name: str) -> np.ndarray:
        """One of `COLUMNS`."""
        return np.arange(len(self)) if name == "row" else getattr(self, name)

    def write(self, path: Path) -> None:
        """Writes the ledger as parquet, by a temporary name, so that a reader never sees half of it."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        about = {"format": FORMAT, "digest": self.digest, "batch_size": self.batch_size, "versions": versions()}
        table = pa.table({name: pa.array(self.column(name).tolist(), _arrow_type(name)) for name in COLUMNS})
        with whole_file(path) as staged:
            parquet.write_table(table.replace_schema_metadata({"saerl_lightning": json.dumps(about)}), staged)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Reads a ledger that `write` wrote.

        Raises:
            InputError: if the file is missing, unreadable, or no ledger of this format.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        if not path.is_file():
            raise InputError(f"'{path}' is no file; write the path of a {FILE} that `plan` or a run wrote")
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"'{path}' is no readable parquet file ({first_line(error)}); make the plan again"
            ) from error
        about = _about(table, path)
        columns: dict[str, Any] = {name: _column(table, name) for name in COLUMNS if name != "row"}
        return cls(about["digest"], about["batch_size"], **columns)


def excerpt(text: str, length: int = EXCERPT) -> str:
    """How a text begins, on one line."""
    line = _storable(" ".join(text[: 4 * length].split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def versions() -> dict[str, str]:
    """Versions of what the order depends on."""
    return {name: version(name) for name in ("saerl-lightning", "numpy", "scipy", "scikit-learn")}


def _about(table: Any, path: Path) -> dict[str, Any]:
    written = (table.schema.metadata or {}).get(b"saerl_lightning")
    missing = sorted(set(COLUMNS) - set(table.column_names))
    if written is None or missing:
        lacks = f"columns {', '.join(missing)}" if missing else "the mark of a ledger"
        raise InputError(f"'{path}' is parquet but no ledger: it lacks {lacks}; write the path of a {FILE}")
    about = json.loads(written)
    if about.get("format") != FORMAT:
        raise InputError(f"'{path}' is a ledger of format {about.get('format')}, this is {FORMAT}; make the plan again")
    return about


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    return pa.string() if name in TEXTS else pa.float64() if name in RATINGS else pa.int64()


def _column(table: Any, name: str) -> np.ndarray:
    values = table.column(name).cast(_arrow_type(name)).to_pylist()
    return _texts(values) if name in TEXTS else np.array(values, dtype=np.float64 if name in RATINGS else np.int64)


def _texts(values: Any) -> np.ndarray:
    listed = [_storable(value) for value in values]
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column


def _storable(text: str) -> str:
    """The text with half characters (lone surrogates, from broken JSON escapes) replaced: no file can hold those."""
    return text.encode("utf-8", "replace").decode("utf-8")


PAGE = "plan.html"


def require_place(folder: Path) -> None:
    """Refuses a place that a plan must not be written to; call it before the work is done.

    Raises:
        InputError: if a file is there, or a ledger without a page: a run's own record.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out '{folder}' is a file; name a folder")
    if (folder / FILE).exists() and not (folder / PAGE).exists():
        raise InputError(
            f"--out '{folder}' holds a {FILE} without a {PAGE}, as a run's folder does, where it is the record of what "
            "was trained; name another folder"
        )


def write_plan(folder: Path, ledger: Ledger, page: str) -> None:
    """Writes ledger and page. A folder that is there keeps what else it holds; each file is replaced in one move.

    Args:
        folder: a new one appears whole; see `require_place` for one that exists.
        ledger: of the plan.
        page: HTML.
    """
    require_place(folder)
    if folder.is_dir() and any(folder.iterdir()):
        write_whole(folder / PAGE, page)  # first: a ledger that stands alone would be taken for a run's
        ledger.write(folder / FILE)
        return
    with whole_folder(folder) as staged:
        write_whole(staged / PAGE, page)
        ledger.write(staged / FILE)
