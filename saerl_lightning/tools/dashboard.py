"""`dashboard`: saves a view of a single run in Weights & Biases. It starts no run.

`run_sections` says which panels there are, from what the run has logged; this module finds that out, from the run's
folder or from W&B, and builds the workspace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError, RunStopped, first_line
from saerl_lightning.files import read_mapping, write_whole
from saerl_lightning.study.costs import curves
from saerl_lightning.study.dashboard.panels import STEP
from saerl_lightning.study.dashboard.workspace import check_place, drawn, save, view_json
from saerl_lightning.tools.run_sections import LoggedRun, run_sections
from saerl_lightning.training.loggers import has_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

OF_LIGHTNING = ("epoch", "step")  # columns of the CSV files that W&B has under other names


def dashboard(run: str, entity: str | None = None, project: str | None = None, out: str | None = None) -> None:
    """Saves a dashboard of a run in W&B and prints its address. It has panels of what the run has logged, and no others.

    Each call makes a new view. It was tested against a local server that accepts the same requests, not against W&B
    itself.

    Args:
        run: Folder of a run that W&B logs too (`-c logger/wandb.yaml`), or the run's path in W&B: entity/project/id.
        entity: W&B user or team that owns the project; null takes the run's, or the key's default.
        project: W&B project that has the run; null takes the run's.
        out: File to which the view is written as JSON instead of being saved in W&B.
    """
    check_place(entity, project)
    folder = Path(run)
    if not folder.is_dir():
        _require_path(run, entity, project)
    if (out is None or not folder.is_dir()) and not has_key():
        asks = "to write it without one, give the run's folder and --out FILE"
        raise InputError(f"there is no W&B key to make a dashboard of '{run}' with; set WANDB_API_KEY, or {asks}")
    logged = of_folder(folder, entity, project) if folder.is_dir() else of_server(run)
    built = run_workspace(logged)
    if out is None:
        print(save(built))
        return
    write_whole(Path(out), view_json(built))
    print(f"wrote {out}; nothing was sent. To save it in W&B, set WANDB_API_KEY and call this without --out")


def run_workspace(run: LoggedRun) -> Workspace:
    """Builds the dashboard of a run as a W&B workspace, not saved yet.

    Args:
        run: Run to show.

    Raises:
        InputError: if the run has logged nothing that a panel shows.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    sections = run_sections(run)
    if not sections:
        raise InputError(f"{run.name} has logged nothing that a dashboard shows; wait for its first step")
    return ws.Workspace(
        entity=run.entity,
        project=run.project,
        name=run.name,
        sections=drawn(sections, len(run.ids)),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=max(10, len(run.ids))),
        runset_settings=ws.RunsetSettings(filters=expr.And(expr.Metric("ID").isin(list(run.ids)))),
    )


def of_folder(folder: Path, entity: str | None = None, project: str | None = None) -> LoggedRun:
    """Reads what a run has logged from its folder.

    Args:
        folder: Folder of the run.
        entity: W&B user or team; null takes that of the run's configuration.
        project: W&B project; null takes that of the run's configuration.

    Raises:
        InputError: if the folder is no run's, or W&B does not log the run.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"'{folder}' is no run's folder: it has no config.yaml; give a folder that `fit` wrote")
    logger = next(_wandb_loggers(read_mapping(folder / "config.yaml", "the run's configuration")), {})
    ids = sorted({match[1] for each in folder.glob("wandb/*") if (match := RUN_OF_WANDB.fullmatch(each.name))})
    if not ids:
        raise InputError(
            f"W&B does not log the run in '{folder}': there is no wandb/ in it; train with -c configs/logger/wandb.yaml, "
            "and with WANDB_MODE=offline where there is no network"
        )
    names = frozenset(curves(folder, lambda name: name not in OF_LIGHTNING))
    if not names:
        raise InputError(
            f"the run in '{folder}' has no numbers in csv/ yet; wait for its first step, or keep the CSVLogger beside "
            "the WandbLogger"
        )
    place = entity or logger.get("entity") or "", project or logger.get("project") or "saerl_lightning"
    return LoggedRun(f"run {folder.name}", tuple(ids), *place, names, tuple(_tables(folder)))


RUN_OF_WANDB = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(\w+)")


def of_server(path: str) -> LoggedRun:
    """Reads what a run has logged from W&B.

    Args:
        path: The run's path in W&B: entity/project/id.

    Raises:
        RunStopped: if W&B can't be reached, or does not give the run.
    """
    import wandb
    from wandb.errors import Error
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        found = wandb.Api().run(path)
        logged = {name: value for name, value in dict(found.summary).items() if not name.startswith("_")}
    except (Error, WandbApiFailedError, ValueError) as error:
        raise RunStopped(
            f"W&B did not give the run '{path}': {first_line(error)}; check the path, the key and the network, or give the "
            "run's folder and --out FILE"
        ) from error
    entity, project, run_id = path.split("/")
    tables = {name for name, value in logged.items() if _is_table(value)}
    return LoggedRun(
        f"run {found.name}", (run_id,), entity, project, frozenset(set(logged) - tables), tuple(sorted(tables))
    )


def _require_path(run: str, entity: str | None, project: str | None) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+", run):
        raise InputError(
            f"run is '{run[:200]}', which is no folder and no path in W&B; write the folder of a run, or entity/project/id "
            "as it stands in the run's address"
        )
    if entity or project:
        raise InputError(f"'{run}' names its entity and project already; leave out --entity and --project")


def _is_table(value: Any) -> bool:
    return hasattr(value, "get") and value.get("_type") == "table-file"


def _wandb_loggers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments of the trainer's W&B loggers."""
    loggers = (config.get("trainer") or {}).get("logger") or []
    for each in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(each, dict) and str(each.get("class_path", "")).endswith("WandbLogger"):
            yield each.get("init_args") or {}


def _tables(folder: Path) -> list[str]:
    """Keys of the tables in W&B's folder; the files' names end with the row's number and a digest."""
    keys = set()
    for root in folder.glob("wandb/*run-*/files/media/table"):
        for path in root.rglob("*.table.json"):
            place = path.relative_to(root)
            keys.add(f"{place.parent.as_posix()}/{place.name.rsplit('_', 2)[0]}")
    return sorted(keys)
