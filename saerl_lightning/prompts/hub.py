"""Reads prompts from a Hugging Face data set: a name on the hub, or a local data-set folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.hub import advice, look_up
from saerl_lightning.prompts.file import Table, checked_columns, prompts_from_table, used_columns
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from datasets import Dataset


class HubPrompts(PromptSource):
    """Prompts from a data set on the Hugging Face hub, or from a local folder that `datasets` can load.

    `zwhe99/DeepMath-103K` needs columns={"prompt": "question", "answer": "final_answer"}.

    Args:
        path: Name on the hub (`owner/name`), or a local folder with parquet, JSON lines or CSV files.
        split: Name of the split to read.
        name: Configuration of the data set, if it has several.
        columns: Column name for each prompt field, where the names differ, such as {"answer": "final_answer"}.
        limit: Number of prompts to read from the start of the split; null reads all.
        revision: Branch, tag or commit on the hub. Name a commit to make a run reproducible.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        name: str | None = None,
        columns: dict[str, str] | None = None,
        limit: Count | None = None,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.split = split
        self.name = name
        self.columns = columns
        self.limit = limit
        self.revision = revision
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the prompts in the split's order; downloads the split if it is not cached.

        Raises:
            InputError: if the data set, configuration, split or a column is unknown, the hub can't be reached, or a
                record is invalid (named by its row, from 1).
        """
        checked_columns(self.columns)
        dataset = self._dataset()
        origin = f"{self.path}[{self.split}]"
        kept = dataset.select_columns(used_columns(self.columns, dataset.column_names, origin))
        rows = kept.select(range(min(self.limit or len(kept), len(kept))))
        records = [(f"{origin}:{number}", cast("dict", row)) for number, row in enumerate(rows, start=1)]
        return prompts_from_table(Table(origin, Path(self.path).name, dataset.column_names, records), self.columns)

    def _dataset(self) -> Dataset:
        from datasets import load_dataset

        look_up(self.path)
        try:
            dataset = load_dataset(self.path, name=self.name, split=self.split, revision=self.revision)
        except FileNotFoundError as error:  # includes DatasetNotFoundError and DataFilesNotFoundError
            raise InputError(f"unknown data set {self.path!r}: {first_line(error)}{self._advice}") from error
        except ConnectionError as error:
            raise InputError(f"data set {self.path!r}: {first_line(error)}{self._advice}") from error
        except (ValueError, OSError) as error:  # unknown split or configuration, or unreadable files
            raise InputError(f"data set {self.path!r}, split {self.split!r}: {first_line(error)}") from error
        return cast("Dataset", dataset)

    @property
    def _advice(self) -> str:
        return advice(self.path, "dataset") or "; check the name and the network, or give a file to FilePrompts"
