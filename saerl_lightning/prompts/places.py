"""Tells what a text names, from the text and the disk alone: a file of prompts, a saved data set, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from saerl_lightning.hub import NAME

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
STATE = "state.json"  # beside the Arrow files of a Dataset
SPLITS = "dataset_dict.json"  # beside the folders of a DatasetDict's splits


def is_saved(path: Path) -> bool:
    """Whether a path is a folder of `save_to_disk`."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def splits(path: Path) -> list[str]:
    """Names of the splits of a saved DatasetDict; none for a saved Dataset."""
    return sorted(each.parent.name for each in path.glob(f"*/{STATE}"))


def on_hub(given: str) -> bool:
    """Whether a text can be the name of a data set on the hub, `owner/name`, where no such path is there."""
    return given.count("/") == 1 and bool(NAME.fullmatch(given)) and Path(given).suffix not in ENDINGS
