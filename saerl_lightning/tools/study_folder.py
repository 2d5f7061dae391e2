"""A study's folder: what protects it from another study, from other settings, and from two calls at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.staging import write_whole
from saerl_lightning.study.luck import with_seed
from saerl_lightning.study.results import RECORD, SPEC, run_folder
from saerl_lightning.study.run_state import now
from saerl_lightning.study.software import software
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.text_files import read_json, read_mapping
from saerl_lightning.tools.study_configs import Resolved, placeless, study_digest


def read_about(root: Path) -> dict[str, Any]:
    """Reads what the study's folder says of its study.

    Raises:
        InputError: if the file is torn.
    """
    try:
        about = read_json(root / RECORD, "the record")
        if isinstance(about["name"], str) and isinstance(about["arms"], dict):
            return about
    except (InputError, KeyError, TypeError):
        pass
    raise InputError(f"'{root / RECORD}' is torn or no study's; delete it, and `study run` writes it anew")


def check_folder(spec: StudySpec, root: Path) -> None:
    """Refuses a folder that is another study's, or none.

    Raises:
        InputError: saying what to do.
    """
    if root.is_file():
        raise InputError(f"'{root}' is a file; name a folder by --out")
    if not root.is_dir() or not any(not each.name.startswith(".lock") for each in root.iterdir()):
        return
    if not (root / RECORD).is_file():
        raise InputError(f"'{root}' holds no {RECORD}, so it is no study's folder; name another by --out")
    name = read_about(root)["name"]
    if name != spec.name:
        raise InputError(
            f"'{root}' is the folder of the study '{name}', and this is '{spec.name}'; name another by --out"
        )


def check_digests(arms: dict[str, str], root: Path) -> None:
    """Refuses to mix runs of two settings under one arm's name. Arms and seeds may be added, and left out."""
    if not (root / RECORD).is_file():
        return
    known: dict[str, str] = read_about(root)["arms"]
    changed = [arm for arm, digest in arms.items() if known.get(arm, digest) != digest]
    if changed:
        names = ", ".join(f"'{arm}'" for arm in changed)
        raise InputError(
            f"'{root}' holds this study with other settings of {names} (configs, flags, budget or their defaults changed): "
            f"write --out another folder, delete '{root}' to start anew, or give the changed arm a new name"
        )


def check_runs(spec: StudySpec, root: Path, resolved: Mapping[str, Resolved]) -> None:
    """Refuses runs that were put into the folder but are not of this study.

    Raises:
        InputError: naming the run and the setting that it has otherwise.
    """
    for arm in spec.arms:
        for seed in spec.seeds:
            folder = run_folder(root, arm, seed)
            if (folder / "config.yaml").is_file():
                wanted, found = dict(_settings(with_seed(resolved[arm], spec, seed))), _recorded(folder, seed)
                other = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
                if other:
                    raise InputError(
                        f"'{folder}' holds a run of another study: {other[0]} is {found.get(other[0])!r} there, and "
                        f"{wanted.get(other[0])!r} in the arm '{arm}'; move it away, or name another --out"
                    )


def _recorded(folder: Path, seed: int) -> dict[str, Any]:
    """The settings that a run was started with, as they would be in the folder where it began."""
    config: Resolved = read_mapping(folder / "config.yaml", "the run's configuration")
    if not isinstance(config.get("run_dir"), str):
        raise InputError(f"'{folder / 'config.yaml'}' names no run_dir; it is no run of a study, move '{folder}' away")
    return dict(_settings(placeless(config, Path(config["run_dir"]).parent.parent, seed)))


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name, but those of a single run."""
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _settings(part, f"{key}.{name}" if key else str(name))
    elif not key.endswith(".save_dir"):  # a logger's, which follows the run's folder
        yield key, value


def claim(spec: StudySpec, source: Path, root: Path, arms: dict[str, str]) -> None:
    """Keeps the study as given, what its arms meant, and the software of every call that ran it."""
    known: dict[str, Any] = read_about(root) if (root / RECORD).is_file() else {}
    every = {**known.get("arms", {}), **arms}
    record = {
        "digest": study_digest(every),
        "name": spec.name,
        "created": known.get("created", now()),
        "software": _with_own(known.get("software", [])),
        "arms": every,
    }
    write_whole(root / SPEC, source.read_text())
    write_whole(root / RECORD, json.dumps(record, indent=1) + "\n")


def note_software(root: Path) -> None:
    """Adds the software to the study's record where it changed since the study began: each run imports what is there."""
    about = read_about(root)
    before = about.get("software", [])
    if (known := _with_own(before)) != before:
        write_whole(root / RECORD, json.dumps({**about, "software": known}, indent=1) + "\n")


def _with_own(before: list[dict[str, str]]) -> list[dict[str, str]]:
    own = software()
    return before if own in before else [*before, own]


def alone(root: Path) -> AbstractContextManager[None]:
    """Holds the study's folder: two calls at once would run the same runs.

    Raises:
        InputError: if another call holds it, on whichever machine.
    """
    return lock.held(root / ".lock", f"the study's folder '{root}'")
