"""The ledger file: one row per prompt with its fate and the reason. Written atomically, and checked when read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.planning import plan_digest
from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import whole_file, whole_folder, write_whole
from saerl_lightning.plan import NOT_SERVED, SamplePlan
from saerl_lightning.plan_page.served import SERVED, Served
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    import pandas as pd

FILE = "ledger.parquet"
FORMAT = 1  # version of the file; unknown versions are refused
EXCERPT = 200  # largest number of characters of a prompt in the ledger
COLUMNS = ["row", "uid", "fate", "reason", "cluster", "difficulty", "quality", "batch", "mixed_from", "topic", "text"]
TEXTS = {"uid", "fate", "reason", "topic", "text"}
RATINGS = {"difficulty", "quality"}


@dataclass(frozen=True, eq=False)
class Ledger:
    """The fate of every prompt of a pool, in the pool's order."""

    digest: str  # digest of the plan
    batch_size: int  # P
    uid: np.ndarray  # (N,) texts, like all columns without a type
    fate: np.ndarray  # "served", "not served" (fills no batch) or "dropped"
    reason: np.ndarray  # "" for served prompts
    cluster: Int[np.ndarray, " N"]  # -1 without clustering
    difficulty: Float[np.ndarray, " N"]  # NaN where not rated
    quality: Float[np.ndarray, " N"]  # NaN where not rated
    batch: Int[np.ndarray, " N"]  # step that serves the prompt, from 0; -1 for none
    mixed_from: Int[np.ndarray, " N"]  # step of the prompt before mixing moved it; -1 if not moved
    topic: np.ndarray  # "" if unknown
    text: np.ndarray  # beginning of the prompt
    run: Served | None = None  # what a run with data.online served, in the pool's order

    @classmethod
    def of(cls, plan: SamplePlan, prompts: Sequence[Prompt], digest: str | None = None) -> Ledger:
        """Makes the ledger of a plan.

        Args:
            plan: Plan over the pool.
            prompts: Prompts of the pool.
            digest: Digest of the served prompts and their order, if it is known already.
        """
        columns = {name: values for name, values in plan.ledger().items() if name != "row"}
        texts: dict[str, Any] = {
            "uid": _texts(prompt.uid for prompt in prompts),
            "topic": _texts(prompt.topic or "" for prompt in prompts),
            "text": _texts(excerpt(prompt.text) for prompt in prompts),
        }
        return cls(plan_digest(plan, prompts) if digest is None else digest, plan.batch_size, **columns, **texts)

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        fates = {fate: int((self.fate == fate).sum()) for fate in ("served", "not served", "dropped")}
        counts = ", ".join(f"{count} {fate}" for fate, count in fates.items())
        return f"<Ledger {self.digest}: {len(self)} prompts, {counts}, in {self.batches} batches of {self.batch_size}>"

    def __len__(self) -> int:
        """Returns the number of prompts in the pool (N)."""
        return len(self.uid)

    @property
    def batches(self) -> int:
        """Number of steps in one epoch (B)."""
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
        """Returns one of the `COLUMNS`."""
        return np.arange(len(self)) if name == "row" else getattr(self, name)

    def to_pandas(self) -> pd.DataFrame:
        """Returns a frame with one row a prompt, in the pool's order, and the `COLUMNS` that the file has.

        The ledger of a run with `data.online` has the columns of its `served.parquet` too: `times_served`, `groups`, `right`,
        `graded`, `tokens`, `last_step`, `waits`, `why`, and what was believed at the latest step, `pass_rate_predicted`,
        `pass_rate_sd` and `chance_predicted`.

        `batch` is the step that serves the prompt, -1 for none; `frame.sort_values("batch")` is the order of training.
        """
        import pandas as pd

        columns = {name: self.column(name) for name in COLUMNS}
        return pd.DataFrame(columns if self.run is None else columns | self.run.columns)

    def write(self, path: str | Path) -> None:
        """Writes the ledger as parquet, atomically, so that readers never see an incomplete file."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        about = {"format": FORMAT, "digest": self.digest, "batch_size": self.batch_size, "versions": versions()}
        table = pa.table({name: pa.array(self.column(name).tolist(), _arrow_type(name)) for name in COLUMNS})
        with whole_file(Path(path)) as staged:
            parquet.write_table(table.replace_schema_metadata({"saerl_lightning": json.dumps(about)}), staged)

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """Reads a ledger that `write` wrote, and `served.parquet` beside it, if there is one.

        Raises:
            InputError: if the file is missing or not readable, or is not a ledger of this format, or if what was served is
                of another pool.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = Path(path)
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
        return cls(about["digest"], about["batch_size"], **columns, run=_run_beside(path, columns["uid"]))


def excerpt(text: str, length: int = EXCERPT) -> str:
    """Returns the beginning of a text, on one line."""
    line = _storable(" ".join(text[: 4 * length].split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the order depends on."""
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


def _run_beside(path: Path, uid: np.ndarray) -> Served | None:
    """Reads what the run of a ledger served, if it had an online operation."""
    beside = path.with_name(SERVED)
    if not beside.exists():
        return None
    served = Served.read(beside)
    if not np.array_equal(served.columns["uid"], uid):
        raise InputError(
            f"'{beside}' is of another pool ({len(served)} prompts) than '{path}' ({len(uid)} prompts); move it to the run "
            "that wrote it"
        )
    return served


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
    """Replaces lone surrogates (from broken JSON escapes), which can't be written to a file."""
    return text.encode("utf-8", "replace").decode("utf-8")


PAGE = "plan.html"


def require_place(folder: Path) -> None:
    """Refuses a folder that a plan must not be written to. Call this before the plan is made.

    Raises:
        InputError: if the path is a file, or holds a ledger without a page, which is a run's own record.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out '{folder}' is a file; name a folder")
    if (folder / FILE).exists() and not (folder / PAGE).exists():
        raise InputError(
            f"--out '{folder}' holds a {FILE} without a {PAGE}, as a run's folder does, where it is the record of what "
            "was trained; name another folder"
        )


def write_plan(folder: Path, ledger: Ledger, page: str) -> None:
    """Writes ledger and page into a folder. Other files in the folder are kept; each of ours is replaced atomically.

    Args:
        folder: Folder for the files. A new one appears with both files at once; for an existing one see
            `require_place`.
        ledger: Ledger of the plan.
        page: Page of the plan, as HTML.
    """
    require_place(folder)
    if folder.is_dir() and any(folder.iterdir()):
        # The page comes first, because a ledger without a page would be taken for a run's record.
        write_whole(folder / PAGE, page)
        ledger.write(folder / FILE)
        return
    with whole_folder(folder) as staged:
        write_whole(staged / PAGE, page)
        ledger.write(staged / FILE)
