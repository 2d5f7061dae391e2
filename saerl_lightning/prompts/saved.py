"""Reads folders that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` wrote, without executing anything.

Names of files and folders are taken from the folder itself, never from the JSON files in it.
"""

from __future__ import annotations

from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json
from saerl_lightning.prompts.arrow import from_arrow, mapped
from saerl_lightning.prompts.places import STATE, splits
from saerl_lightning.prompts.table import RecordTable


def table(path: Path, split: str | None, limit: int | None) -> RecordTable:
    """Reads a saved data set, mapped into memory.

    Args:
        path: Folder of a Dataset or a DatasetDict.
        split: Split of a DatasetDict; None takes `train`, or the only one.
        limit: Number of rows to read from the start; None reads all.

    Raises:
        InputError: if the split is unknown or not obvious, or a file is missing or damaged.
    """
    folder = path if (path / STATE).is_file() else path / _split(path, split)
    if folder == path and split is not None:
        raise InputError(f"{path} is one saved Dataset without splits, and split is {split!r}; write null")
    import pyarrow as pa

    parts = [mapped(file) for file in _files(folder)]
    try:
        content = pa.concat_tables(parts)
    except pa.ArrowException as error:
        raise InputError(f"{folder}: its Arrow files have different columns; save the data set anew") from error
    name = path.name if folder == path else f"{path.name}/{folder.name}"
    return from_arrow(content, name, str(folder), limit, stem=path.name)


def _split(path: Path, wanted: str | None) -> str:
    there = splits(path)
    if wanted is not None and wanted in there:
        return wanted
    if wanted is None and ("train" in there or len(there) == 1):
        return "train" if "train" in there else there[0]
    if not there:
        raise InputError(f"{path} has no split with a {STATE}; save the DatasetDict anew")
    asked = "which split is meant is not obvious" if wanted is None else f"there is no split {wanted!r}"
    raise InputError(f"{path}: {asked}; name one of {', '.join(there)}, as {path / there[0]}")


def _files(folder: Path) -> list[Path]:
    """Returns the Arrow files of a Dataset in their order, which their names give.

    Raises:
        InputError: if they are not the files that the data set was saved in.
    """
    state = read_json(folder / STATE, "the saved data set's state")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise InputError(f"{folder / STATE} does not list its data files; save the data set anew")
    listed = sorted(str(each.get("filename") if isinstance(each, dict) else each) for each in state["_data_files"])
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{folder} was saved with an index of rows by an old `datasets`; load it there and save it anew"
        )
    there = sorted(folder.glob("*.arrow"))
    if not there or [each.name for each in there] != listed:
        raise InputError(
            f"{folder} holds {len(there)} Arrow files, and not the {len(listed)} that its {STATE} lists; copy all of them"
        )
    if outside := next((each for each in there if not each.is_file() or each.is_symlink()), None):
        raise InputError(f"{outside} is no plain file; save the data set anew")
    return there
