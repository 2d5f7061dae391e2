"""The run folder: where a run writes, and what protects an older run from being written over."""

from __future__ import annotations

import shutil
from pathlib import Path

from saerl_lightning.errors import InputError


def claim(folder: Path, overwrite: bool, resuming: bool) -> None:
    """Makes the run folder ready to be written to.

    Args:
        folder: of this run.
        overwrite: delete what an older run left there.
        resuming: go on in the folder as it is.

    Raises:
        InputError: if the folder holds an older run and neither flag is set, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name another --run_dir")
    if folder.is_dir() and any(folder.iterdir()) and not resuming:
        _clear(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)


def _clear(folder: Path, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(
            f"run folder '{folder}' exists; write --ckpt_path last to go on with that run, --overwrite true to delete "
            "it, or another --run_dir"
        )
    if not _is_run(folder):  # a slip of the finger must not delete somebody's home
        raise InputError(
            f"'{folder}' holds no run's config.yaml, so it is no run folder and is not deleted; name another"
        )
    shutil.rmtree(folder)


def _is_run(folder: Path) -> bool:
    config = folder / "config.yaml"
    return config.is_file() and any(line.startswith("run_dir:") for line in config.read_text().splitlines())
