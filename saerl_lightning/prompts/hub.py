"""Reads prompts from a Hugging Face data set: a name on the hub, or a local data-set folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import check_yaml, read_text, texts_in
from saerl_lightning.hub import advice, look_up
from saerl_lightning.prompts.arrow import from_arrow
from saerl_lightning.prompts.places import is_saved
from saerl_lightning.prompts.source import PromptSource, Reading
from saerl_lightning.prompts.table import checked_columns, prompts_from_table
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


# Where `datasets` reads which files a data set has.
CARDS = ("README.md", ".huggingface.yaml")
ELSEWHERE = re.compile(r"[/~\\]|(?:.*[/\\])?\.\.(?:[/\\]|$)|.*://")


class HubPrompts(PromptSource):
    """Prompts from a data set on the Hugging Face hub, or from a local folder that `datasets` can load.

    Rows are recognised by their columns, as `FilePrompts` does. All columns are kept for rewards.

    Args:
        path: Name on the hub (`owner/name`), or a local folder with parquet, JSON lines or CSV files.
        split: Name of the split to read.
        name: Configuration of the data set, if it has several.
        columns: Column of each prompt field where it is not recognised, such as {"answer": "meta.final_answer"}; a
            dotted path leads into nested columns.
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
        return self.read().prompts

    def read(self) -> Reading:
        """Reads the prompts, and says as what their rows were read."""
        checked_columns(self.columns)
        dataset = self._dataset()
        origin = f"{self.path}[{self.split}]"
        rows = cast("pa.Table", dataset.with_format("arrow")[: self.limit or len(dataset)])  # still on the disk
        return prompts_from_table(from_arrow(rows, origin, origin, stem=Path(self.path).name), self.columns)

    def _dataset(self) -> Dataset:
        from datasets import load_dataset

        if is_saved(Path(self.path)):
            raise InputError(
                f"the data set '{self.path}' was written by save_to_disk; write data.train: {self.path}, or the class "
                "FilePrompts with that path"
            )
        _refuse_paths_elsewhere(Path(self.path))
        look_up(self.path)
        try:
            dataset = load_dataset(self.path, name=self.name, split=self.split, revision=self.revision)
        except FileNotFoundError as error:  # includes DatasetNotFoundError and DataFilesNotFoundError
            raise InputError(f"unknown data set {self.path!r}: {first_line(error)}{self._advice}") from error
        except ConnectionError as error:
            raise InputError(f"data set {self.path!r}: {first_line(error)}{self._advice}") from error
        except (ValueError, OSError) as error:  # unknown split or configuration, or unreadable files
            raise InputError(
                f"data set {self.path!r}, split {self.split!r}: {' '.join(str(error).split())[:300]}; configuration and "
                "split are `name` and `split` of the class HubPrompts"
            ) from error
        return cast("Dataset", dataset)

    @property
    def _advice(self) -> str:
        return advice(self.path, "dataset") or "; check the name and the network, or write the path of a file or folder"


def _refuse_paths_elsewhere(folder: Path) -> None:
    """Refuses a local data-set folder whose own card names files outside of it, which `datasets` would read.

    Raises:
        InputError: naming the first such path; or if the card is no YAML.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    for card in (folder / name for name in CARDS if (folder / name).is_file()):
        text = read_text(card, "the card of the data set")
        if card.suffix == ".md":
            block = REGEX_YAML_BLOCK.search(text)
            text = block[2] if block else ""
        try:
            check_yaml(text)
            content = yaml.safe_load(text)
        except (yaml.YAMLError, InputError, ValueError) as error:
            raise InputError(
                f"the card of the data set '{card}' is no YAML: {' '.join(str(error).split())[:200]}"
            ) from error
        if not isinstance(content or {}, dict):
            raise InputError(f"the card of the data set '{card}' holds {content!r:.60}; write a mapping, or nothing")
        configs = (content or {}).get("configs")
        if outside := next((each for each in texts_in(configs) if ELSEWHERE.match(each)), None):
            raise InputError(f"'{card}' names '{outside[:100]}', which is not in the folder; give that file itself")
