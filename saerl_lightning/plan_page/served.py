"""The served file: one row per prompt with what a run served, measured and believed of it. Written atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import whole_file

SERVED = "served.parquet"
FORMAT = 1  # version of the file; unknown versions are refused
WHOLE = ("times_served", "groups", "tokens", "last_step", "waits")
RATES = ("right", "graded", "pass_rate_predicted", "pass_rate_sd", "chance_predicted")
TEXTS = ("uid", "why")
COLUMNS = ("uid", *WHOLE, *RATES, "why")


@dataclass(frozen=True, eq=False)
class Served:
    """What a run served so far, in the pool's order, and how it was predicted.

    Args:
        columns: A value a prompt: `times_served`, `groups` with a graded answer, `right` and `graded` answers, `tokens`
            written, `last_step` that served it (from 0; -1 for never), `waits` (steps that it waited behind the others)
            and `why`, and what was believed of its pass rate at its latest step (NaN if nothing was).
        steps: A row a step: mean believed and measured pass rate, mean chance to vary, share that varied.
        reliability: A row a tenth of predicted chances: groups, sum of their chances, number that varied.
    """

    columns: dict[str, np.ndarray]
    steps: Float[np.ndarray, "S 4"]
    reliability: Float[np.ndarray, "10 3"]

    def __len__(self) -> int:
        """Returns the number of prompts in the pool (N)."""
        return len(self.columns["uid"])

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        seen = int((self.columns["groups"] > 0).sum())
        return f"<Served: {seen} of {len(self)} prompts in {len(self.steps)} steps>"

    def write(self, path: str | Path) -> None:
        """Writes the file, atomically, so that readers never see an incomplete one."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        about = {"format": FORMAT, "steps": _with_null(self.steps), "reliability": _with_null(self.reliability)}
        table = pa.table({name: pa.array(self.columns[name].tolist(), _arrow_type(name)) for name in COLUMNS})
        with whole_file(Path(path)) as staged:
            parquet.write_table(table.replace_schema_metadata({"saerl_lightning": json.dumps(about)}), staged)

    @classmethod
    def read(cls, path: str | Path) -> Served:
        """Reads a file that `write` wrote.

        Raises:
            InputError: if the file is missing or not readable, or is none of this format.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = Path(path)
        if not path.is_file():
            raise InputError(f"'{path}' is no file; write the path of a {SERVED} that a run with data.online wrote")
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"'{path}' is no readable parquet file ({first_line(error)})") from error
        about = json.loads((table.schema.metadata or {}).get(b"saerl_lightning", b"{}"))
        if about.get("format") != FORMAT or not set(COLUMNS) <= set(table.column_names):
            raise InputError(f"'{path}' is parquet, but no {SERVED} of format {FORMAT}; write the path of one")
        columns = {name: np.array(table.column(name).to_pylist(), dtype=_numpy_type(name)) for name in COLUMNS}
        return cls(columns, np.array(about["steps"], float).reshape(-1, 4), np.array(about["reliability"], float))


def _with_null(numbers: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in numbers.tolist()]


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    return pa.string() if name in TEXTS else pa.int64() if name in WHOLE else pa.float64()


def _numpy_type(name: str) -> type:
    return object if name in TEXTS else np.int64 if name in WHOLE else np.float64
