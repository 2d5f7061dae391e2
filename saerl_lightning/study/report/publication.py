"""`study publish` and `study tables`: a study's numbers as CSV files, and tables made from these files alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, whole_folder, write_whole
from saerl_lightning.study.report.findings import status
from saerl_lightning.study.report.gather import gather
from saerl_lightning.study.report.numbers import StudyNumbers, read_numbers
from saerl_lightning.study.report.page import tables_section
from saerl_lightning.study.report.sheets import NAMES, check_derived, read_runs, sheets
from saerl_lightning.study.results import RECORD, SPEC, StudyResults, read_spec

FILES = (*NAMES, SPEC, RECORD)


def write_publication(folder: Path, to: Path, unfinished: bool = False) -> None:
    """Writes the CSV files, the given `study.yaml`, and `study.json`; the same runs give the same bytes.

    Args:
        folder: Folder of the study.
        to: New or empty folder, or one with an earlier publication of this study, which is replaced.
        unfinished: Whether runs may be missing.

    Raises:
        InputError: if the folder is not a study's, runs are missing, or the target folder has other files.
    """
    results = StudyResults.read(folder)
    study = read_numbers(results)
    require_place(to, study)
    facts = gather(study)
    said = status(facts)
    if said.startswith("UNFINISHED") and not unfinished:
        raise InputError(
            f"'{folder}': {said.partition(' What')[0]} `study run` goes on with it; with --unfinished true what there is "
            "is published, and its tables begin with that line"
        )
    target = facts.target if np.isfinite(facts.target) else None
    about = {**study.about, "status": said or "finished", "target": target, "common": list(facts.common)}
    with whole_folder(to, replace=True) as staged:
        for name, text in sheets(study).items():
            write_whole(staged / name, text)
        write_whole(staged / SPEC, (folder / SPEC).read_text(encoding="utf-8"))
        write_whole(staged / RECORD, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def require_place(to: Path, study: StudyNumbers) -> None:
    """Refuses a target folder that has anything but an earlier publication of this study.

    Raises:
        InputError: naming the file or folder that is in the way.
    """
    if to.exists() and not to.is_dir():
        raise InputError(f"'{to}' is a file; name a folder to publish to")
    held = sorted(each.name for each in to.iterdir()) if to.is_dir() else []
    if other := [name for name in held if name not in FILES]:
        raise InputError(
            f"'{to}' holds '{other[0]}', which is nothing that `study publish` writes; name another folder"
        )
    if held:
        there = _about(to)
        before, now = ((each.get("name"), each.get("created")) for each in (there, study.about))
        if before != now:
            raise InputError(
                f"'{to}' holds what was published of '{before[0]}', begun {before[1]}, and this is '{now[0]}', begun "
                f"{now[1]}; name another folder, or remove that one"
            )


def read_publication(folder: Path) -> StudyNumbers:
    """Reads a study's numbers from the files that `write_publication` wrote.

    Raises:
        InputError: if a file is missing or damaged, or its numbers contradict those of another.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise InputError(
            f"'{folder}' holds no {missing[0]}; name a folder that `study publish STUDY FOLDER` wrote, not the study's own"
        )
    spec = read_spec(folder)
    study = StudyNumbers(spec, _about(folder, spec.name), read_runs(folder, spec))
    check_derived(folder, study)
    return study


def _about(folder: Path, name: str | None = None) -> dict[str, Any]:
    try:
        about = read_json(folder / RECORD, "the record")
        if isinstance(about, dict) and about.get("name") == (name or about.get("name")):
            return about
    except InputError:
        pass
    raise InputError(f"'{folder / RECORD}' is torn or no study's; remove '{folder}' and publish the study again")


def section(folder: Path, beside: Path) -> str:
    """Renders the tables of a published study as Markdown, after links to its files.

    Args:
        folder: Folder that `write_publication` wrote.
        beside: Folder that the links are relative to.
    """
    study = read_publication(folder)
    place = Path(os.path.relpath(folder, beside)).as_posix()
    links = ", ".join(f"[{name}]({place}/{name})" for name in FILES)
    software = [
        ("software", ", ".join(f"{name} {value}" for name, value in each.items()))
        for each in study.about.get("software", [])
    ]
    tables = tables_section(gather(study), software)
    return f"Every run's numbers: {links}; `study tables` makes what follows from them.\n\n{tables}"


def write_section(folder: Path, page: Path) -> None:
    """Writes the tables of a published study between two marks of a Markdown page; the rest of the page stays.

    Args:
        folder: Folder that `write_publication` wrote; the marks are `<!-- tables NAME -->` and `<!-- /tables NAME -->`
            with its name.
        page: Path of a Markdown file.

    Raises:
        InputError: if the page can't be read, or does not have both marks once and in this order.
    """
    begin, end = (f"<!-- {slash}tables {folder.resolve().name} -->" for slash in ("", "/"))
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--page '{page}' can't be read ({error}); name a Markdown file") from error
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found or text.count(begin) != 1 or text.count(end) != 1:
        raise InputError(f"--page '{page}' needs the lines {begin} and {end} once, where the tables are to stand")
    write_whole(page, f"{before}{begin}\n{section(folder, page.parent)}{end}{after}")
