"""`study dashboard`: a saved view of a study in Weights & Biases, made by code. It starts no run and reads none.

What it shows is `saerl_lightning.study.dashboard`'s; here is what becomes of it in W&B: the runs of the study's group,
averaged by arm (job type), with the range over the seeds as a band.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning import shipped
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.files import write_whole
from saerl_lightning.study.dashboard_layout import STEP, DashboardPanel, DashboardSection, LoggedStudy, sections
from saerl_lightning.study.folder import Resolved, listed, resolve, sets
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.training.loggers import has_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


SLOTS = ("filtering", "clustering", "curriculum", "mixing")


def dashboard(study: str, entity: str | None = None, project: str = "saerl_lightning", out: str | None = None) -> None:
    """Saves a dashboard of a study's runs in W&B and prints its address; without a W&B key it writes it to a file.

    Each call makes a new view. What W&B shows of it we have not seen: it was tried against a server of our own that
    takes the same requests.

    Args:
        study: YAML file of the study.
        entity: W&B user or team that the project is of; the key's own by default.
        project: W&B project that the runs are in.
        out: file to write the view to, as JSON, in place of saving it.
    """
    _check_place(entity, project)
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
    path = Path(out or f"runs/study/{spec.name}.dashboard.json")  # not in the study's folder, which may not be begun
    write_whole(path, view_json(built))
    print(f"wrote {path}; nothing was sent. To save it in W&B, set WANDB_API_KEY and call this without --out")


def logged_study(spec: StudySpec, resolved: Mapping[str, Resolved]) -> LoggedStudy:
    """What a study's runs will log, from its arms' configurations.

    Args:
        spec: the study.
        resolved: the configuration of each arm.
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
    """The dashboard as a W&B workspace that is not saved yet.

    Args:
        study: what its runs log.
        entity: user or team; "" where it is not known yet.
        project: of the runs.

    Raises:
        InputError: if the study's name is one that W&B's filters would misread.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    if not re.fullmatch(r"[\w .:/@-]+", study.name):  # = and < would become == and <=, and quotes end the filter
        raise InputError(
            f"the study's name is '{study.name}', which W&B's filters would misread; write letters, digits, blanks and "
            ". : / @ - _"
        )
    runs = len(study.arms) * study.seeds
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"study {study.name}",
        sections=[_section(each, runs, first=i == 0) for i, each in enumerate(sections(study))],
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
    """The view as W&B keeps it, with the place it is meant for."""
    view = built._to_model()  # what `save` sends; there is no public way to it
    given = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(given, indent=1, ensure_ascii=False) + "\n"


def save(built: Workspace) -> str:
    """Saves the workspace as a new view, in the entity of WANDB_API_KEY where it names none, and gives its address.

    Raises:
        RunStopped: if W&B can't be reached or does not take it.
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


def _check_place(entity: str | None, project: str) -> None:
    for name, value in (("entity", entity), ("project", project)):
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise InputError(
                f"{name} is '{value}'; write a name of letters, digits and . _ -, as it stands in the address of the "
                "runs: https://wandb.ai/ENTITY/PROJECT"
            )


def _classes(config: Resolved, key: str) -> dict[str, dict[str, Any]]:
    """The arguments of the trainer's loggers or callbacks, by the name of the class."""
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
    """A panel; how runs are grouped is the run list's to say, so that ungrouping there shows every seed."""
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, WeavePanelSummaryTable

    if panel.kind == "table":
        return WeavePanelSummaryTable(table_name=panel.shows)
    band: dict[str, Any] = {"title": panel.title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if panel.kind == "bars":
        return BarPlot(metrics=[panel.shows], max_runs_to_show=runs, max_bars_to_show=runs, **band)
    return LinePlot(x=STEP, y=[panel.shows], title_x="step", max_runs_to_show=runs, **band)
