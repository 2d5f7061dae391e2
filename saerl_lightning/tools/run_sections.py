"""Sections and panels of a single run's dashboard: of the names that the run has logged, and of no others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from saerl_lightning.data.planning import SLOTS
from saerl_lightning.study.dashboard.panels import (
    COMPLETIONS,
    CORRECTED,
    PLAN,
    POLICY,
    REWARDS,
    SAMPLER,
    TIME,
    DashboardPanel,
    DashboardSection,
    curves,
)

PLANNED, MEASURED = "plan/difficulty", "plan/pass_rate"
# Numbers of the operations and their probes beside those that a study compares.
SCORES = {
    "filtering": {"prompts kept": "kept", "Spearman of the probe": "probe/spearman", "labels": "probe/labels"},
    "clustering": {"AMI with topics": "ami"},
    "curriculum": {"labels of the probe": "probe/labels", "features it uses": "probe/nonzero"},
    "mixing": {},
    "online": {"error of pass rates": "pass_rate_error", "never served": "unseen"},
}
WEIGHTS = {
    "Smallest weight of a token": "policy/weight/min",
    "Largest weight of a token": "policy/weight/max",
    "Share of completions that are kept": "rollouts/kept_frac",
}
STEPS_OF_TABLES = 3  # completions are shown of the first step that has a table, of the middle one and of the last


@dataclass(frozen=True)
class LoggedRun:
    """A run as W&B has it, and what it has logged.

    Args:
        name: Name of the view.
        ids: W&B ids of the run; several if it went on after a kill.
        entity: W&B user or team; "" if it is not known.
        project: W&B project of the view.
        metrics: Names of the metrics that were logged.
        tables: Keys of the tables that were logged.
    """

    name: str
    ids: tuple[str, ...]
    entity: str
    project: str
    metrics: frozenset[str]
    tables: tuple[str, ...] = ()


def run_sections(run: LoggedRun) -> list[DashboardSection]:
    """Lists the sections, the most important first; what the run has not logged is left out.

    Args:
        run: Run to show.
    """
    found = [
        curves("Rewards and groups", {**REWARDS, **_rewards(run.metrics)}),
        curves("Accuracy of each set", _accuracy(run.metrics)),
        DashboardSection("The plan against the measured pass rates", _plan_by_step(run.metrics)),
        curves("Completions", COMPLETIONS),
        curves("Sampler against policy", {**SAMPLER, **CORRECTED}),
        curves("Policy", {**POLICY, "KL to the reference": "policy/kl", "Learning rate": "optim/lr", **WEIGHTS}),
        DashboardSection("Operations and probes", [each for slot in SLOTS for each in _scores(slot)]),
        curves("Domains", _domains(run.metrics)),
        curves("Time and throughput of a step", {**TIME, "Reference (s)": "time/reference"}),
        DashboardSection("Tables", [DashboardPanel(key, key, "table") for key in _shown_tables(run.tables)]),
    ]
    logged = {*run.metrics, *run.tables}
    kept = [replace(each, panels=[panel for panel in each.panels if _is_logged(panel, logged)]) for each in found]
    return [section for section in kept if section.panels]


def _is_logged(panel: DashboardPanel, logged: Collection[str]) -> bool:
    return panel.shows in logged and (panel.along == DashboardPanel.along or panel.along in logged)


def _rewards(metrics: Iterable[str]) -> dict[str, str]:
    """Mean and share of failures of each reward by its name."""
    matches = [re.fullmatch(r"reward/(.+)/(mean|failed_frac|seconds)", name) for name in sorted(metrics)]
    titles = {"mean": "mean", "failed_frac": "share of failed graders", "seconds": "seconds"}
    return {f"{match[1]}: {titles[match[2]]}": match[0] for match in matches if match}


def _accuracy(metrics: Iterable[str]) -> dict[str, str]:
    """The average over samples and the share that was cut, of each validation set."""
    return {
        name.removeprefix("val/"): name
        for name in sorted(metrics)
        if re.fullmatch(r"val/[^/]+/(avg@\w+|pass@\w+|truncated_frac)", name)
    }


def _domains(metrics: Iterable[str]) -> dict[str, str]:
    """The proportion of each domain that was asked for, and served."""
    matches = [re.fullmatch(r"data/online/(share|served)/(.+)", name) for name in sorted(metrics)]
    return {f"{match[2]}: {match[1]}": match[0] for match in matches if match}


def _plan_by_step(metrics: Collection[str]) -> list[DashboardPanel]:
    """The rating of each step's prompts beside what was measured, and the one against the other."""
    both = [
        DashboardPanel("Rated difficulty of the step's prompts", PLANNED),
        DashboardPanel("Measured pass rate of the same prompts", MEASURED),
        DashboardPanel("Pass rate by rated difficulty", MEASURED, along=PLANNED),
    ]
    return both if PLANNED in metrics else []


def _scores(slot: str) -> list[DashboardPanel]:
    numbers: Mapping[str, str] = {**PLAN[slot], **SCORES[slot]}
    return [DashboardPanel(f"{slot}: {title}", f"data/{slot}/{name}", "number") for title, name in numbers.items()]


def _shown_tables(tables: Iterable[str]) -> list[str]:
    """The plan's tables, and completions of the first, the middle and the last step that has some."""
    steps = sorted(int(match[1]) for key in tables if (match := re.fullmatch(r"completions/step_(\d+)", key)))
    chosen = (
        [steps[round(i * (len(steps) - 1) / (STEPS_OF_TABLES - 1))] for i in range(STEPS_OF_TABLES)] if steps else []
    )
    plans = sorted(key for key in tables if key.startswith("plan/"))
    return [*plans, *(f"completions/step_{step}" for step in dict.fromkeys(chosen))]
