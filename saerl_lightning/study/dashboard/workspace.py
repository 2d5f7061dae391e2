"""`study dashboard`: saves a view of a study's runs in Weights & Biases. It starts no run and reads none.

`dashboard_panels` says which panels there are; this module builds the W&B workspace. It has the runs of the study's
group, averaged by arm (job type), with a band for the range over the seeds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning import shipped
from saerl_lightning.data.planning import SLOTS
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.files import write_whole
from saerl_lightning.study.dashboard.panels import STEP, DashboardPanel, DashboardSection, LoggedStudy, sections
from saerl_lightning.study.folder import Resolved, listed, resolve, sets
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.training.loggers import has_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def dashboard(study: str, entity: str | None = None, project: str = "saerl_lightning", out: str | None = None) -> None:
    """Saves a dashboard of a study's runs in W&B and prints its address; without a W&B key, writes it to a file.

    Each call makes a new view. It was tested against a local server that accepts the same requests, not against W&B
    itself.

    Args:
        study: YAML file of the study.
        entity: W&B user or team that owns the project; null takes the key's default.
        project: W&B project that has the runs.
        out: File to which the view is written as JSON instead of being saved in W&B.
    """
    check_place(entity, project)
    sends = out is None and has_key()
    if entity is not None and out is None and not sends:
        raise InputError(
            f"entity is '{entity}', but there is no W&B key to save the dashboard with; set WANDB_API_KEY, or write it to a "
            "file by --out"
        )
    spec = StudySpec.read(shipped.find(study))
    resolved = resolve(spec, Path(f"runs/study/{spec.name}"))
    built = workspace(logged_study(spec, resolved), entity or "", project)
    if silent := [arm for arm, config in resolved.items() if "WandbLogger" not in _classes(config, "logger")]:
        arms = "the study" if len(silent) == len(resolved) else f"its arms {', '.join(silent)}"
        print(f"{arms} has no WandbLogger, so these runs will not be in it; docs/howto/wandb.md says how to add one")
    if sends:
        print(save(built))
        return
    # Not in the study's folder: `study run` refuses a folder that has files but no study.
    path = Path(out or f"runs/study/{spec.name}.dashboard.json")
    write_whole(path, view_json(built))
    print(f"wrote {path}; nothing was sent. To save it in W&B, set WANDB_API_KEY and call this without --out")


def logged_study(spec: StudySpec, resolved: Mapping[str, Resolved]) -> LoggedStudy:
    """Collects the metrics and tables that a study's runs will log, from the configurations of its arms.

    Args:
        spec: Study whose runs will be shown.
        resolved: Full configuration of each arm.
    """
    configs = list(resolved.values())
    objectives = [config["model"]["init_args"].get("objective", {}).get("init_args", {}) for config in configs]
    slots = [slot for slot in SLOTS if any(config["data"]["init_args"].get(slot) for config in configs)]
    return LoggedStudy(
        name=spec.name,
        arms=list(spec.arms),
        baseline=spec.baseline,
        seeds=len(spec.seeds),
        metric=spec.metric,
        sets=sets(resolved[spec.baseline]),
        slots=slots,
        kl=any((each.get("kl") or {}).get("weight") for each in objectives),
        correction=any(each.get("correction") for each in objectives),
        tables=_tables(spec, configs, slots),
    )


def workspace(study: LoggedStudy, entity: str, project: str) -> Workspace:
    """Builds the dashboard as a W&B workspace, not saved yet.

    Args:
        study: Names that the study's runs log.
        entity: W&B user or team; "" if it is not known yet.
        project: W&B project of the runs.

    Raises:
        InputError: if the study's name has characters that W&B's filters misread.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    # W&B's filter language would read = and < as operators, and a quote as the end of the name.
    if not re.fullmatch(r"[\w .:/@-]+", study.name):
        raise InputError(
            f"the study's name is '{study.name}', which W&B's filters would misread; write letters, digits, blanks and "
            ". : / @ - _"
        )
    runs = len(study.arms) * study.seeds
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"study {study.name}",
        sections=drawn(sections(study), runs),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=max(10, runs)),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == study.name),
            groupby=[expr.Metric("JobType")],  # the arm: study/plan.py
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            group_colors={**study.colours},
            pinned_columns=["run:displayName", "run:state", f"summary:{study.metric}"],
        ),
    )


def view_json(built: Workspace) -> str:
    """Writes the view as W&B's JSON, with the entity and project it is meant for."""
    # There is no public function that gives the JSON which `save` sends.
    view = built._to_model()
    given = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(given, indent=1, ensure_ascii=False) + "\n"


def save(built: Workspace) -> str:
    """Saves the workspace as a new view and returns its address; without an entity, in that of WANDB_API_KEY.

    Raises:
        RunStopped: if W&B can't be reached or refuses the view.
    """
    import wandb
    from wandb.errors import Error
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        built.entity = built.entity or wandb.Api().default_entity or ""
        return built.save().url
    except (Error, WandbApiFailedError) as error:
        raise RunStopped(
            f"W&B did not take the dashboard for {built.entity or 'the entity of WANDB_API_KEY'}/{built.project}: {error}; "
            "check the key, --entity and --project, or write it to a file by --out"
        ) from error


def check_place(entity: str | None, project: str | None) -> None:
    """Refuses names that can't be an entity or a project of W&B; null is not checked.

    Args:
        entity: W&B user or team.
        project: W&B project of the view.

    Raises:
        InputError: naming the setting.
    """
    for name, value in (("entity", entity), ("project", project)):
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise InputError(
                f"{name} is '{value}'; write a name of letters, digits and . _ -, as it stands in the address of the "
                "runs: https://wandb.ai/ENTITY/PROJECT"
            )


def _classes(config: Resolved, key: str) -> dict[str, dict[str, Any]]:
    """Arguments of the trainer's loggers or callbacks, by class name."""
    return {
        each["class_path"].rpartition(".")[2]: each.get("init_args", {}) for each in listed(config, f"trainer.{key}")
    }


def _tables(spec: StudySpec, configs: Sequence[Resolved], slots: Sequence[str]) -> list[str]:
    callbacks = {name: given for config in configs for name, given in _classes(config, "callbacks").items()}
    found: list[str] = []
    if "PlanTable" in callbacks:
        also = {"not_served": "filtering" in slots, "clusters": "clustering" in slots, "operations": bool(slots)}
        found += ["plan/overview", *(f"plan/{key}" for key, logged in also.items() if logged), "plan/ledger"]
    if "CompletionTable" in callbacks:
        every, steps = callbacks["CompletionTable"]["every_n_steps"], spec.budget.steps or 0
        found += [f"completions/step_{step}" for step in dict.fromkeys([1, steps - steps % every]) if step]
    return found


def drawn(listed: Sequence[DashboardSection], runs: int) -> list[Any]:
    """Draws sections as W&B's, the first one pinned.

    Args:
        listed: Sections in order.
        runs: Number of runs that a panel shows.
    """
    return [_section(each, runs, first=i == 0) for i, each in enumerate(listed)]


def _section(section: DashboardSection, runs: int, first: bool) -> Any:
    from wandb_workspaces import workspaces as ws

    columns = min(len(section.panels), 3)
    return ws.Section(
        name=section.title,
        panels=[_panel(each, runs) for each in section.panels],
        is_open=True,
        pinned=first,
        layout_settings=ws.SectionLayoutSettings(columns=columns, rows=math.ceil(len(section.panels) / columns)),
        panel_settings=ws.SectionPanelSettings(x_axis=STEP),
    )


def _panel(panel: DashboardPanel, runs: int) -> Any:
    """Builds a panel. It sets no grouping of runs, so ungrouping the run list shows every seed."""
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, ScalarChart, WeavePanelSummaryTable

    if panel.kind == "table":
        return WeavePanelSummaryTable(table_name=panel.shows)
    if panel.kind == "number":
        return ScalarChart(title=panel.title, metric=panel.shows)
    band: dict[str, Any] = {"title": panel.title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if panel.kind == "bars":
        return BarPlot(metrics=[panel.shows], max_runs_to_show=runs, max_bars_to_show=runs, **band)
    title_x = "step" if panel.along == STEP else panel.along
    return LinePlot(x=panel.along, y=[panel.shows], title_x=title_x, max_runs_to_show=runs, **band)
