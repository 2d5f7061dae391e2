"""The plan's folder: `ledger.parquet` and `plan.html`, both or neither, and nothing else in it is touched."""

from __future__ import annotations

from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.report.ledger import FILE, Ledger
from saerl_lightning.staging import whole_folder, write_whole

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
