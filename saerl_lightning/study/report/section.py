"""What a tool beside the study says of itself: a section of its report, as `docs/reference/report.md` describes it.

It holds words and numbers that were made elsewhere, and computes none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        title: its heading.
        text: what it shows and what it can't, plain.
        columns: of its table; empty for none.
        rows: of its table, a cell a column.
        figure: plotly's JSON, `data` and `layout`; null for none.

    Raises:
        InputError: if a row has another number of cells than there are columns.
    """

    title: str
    text: str
    columns: list[str]
    rows: list[list[str]]
    figure: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses a table that can't be drawn."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(f"section '{self.title}': {len(row)} cells for {len(self.columns)} columns: {row}")

    def write(self, path: Path) -> None:
        """Writes the section as JSON, whole or not at all.

        Raises:
            ValueError: if the figure holds a number that JSON has no word for.
        """
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        write_whole(path, json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
