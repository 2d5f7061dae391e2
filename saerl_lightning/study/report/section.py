"""A section of a study's report that another tool writes as JSON; `docs/reference/report.md` describes the format.

It stores texts and numbers that were computed elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        title: Heading of the section.
        text: Finding and its limits as plain text, with a blank line between paragraphs.
        columns: Column titles of the table; empty for no table.
        rows: Rows of the table, one cell a column.
        figure: Plotly's JSON with `data` and `layout`; null for no figure.

    Raises:
        InputError: if the number of cells in a row is not the number of columns.
    """

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses a table whose rows do not fit its columns."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(f"section '{self.title}': {len(row)} cells for {len(self.columns)} columns: {row}")

    @property
    def paragraphs(self) -> list[str]:
        """Paragraphs of the text: the finding first, then how it was found."""
        return [part.strip() for part in self.text.split("\n\n")]

    def write(self, path: Path) -> None:
        """Writes the section as JSON, completely or not at all.

        Raises:
            ValueError: if the figure has NaN or infinity, which JSON can't express.
        """
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        write_whole(path, json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
