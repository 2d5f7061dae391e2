"""Sections and panels of a study's dashboard, one logged name a panel. Plain data, without W&B.

`dashboard` builds the W&B workspace from it, and `tools/run_sections` takes the metrics for a single run. Intervals and
tests are in the report; a dashboard has means and the range over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from saerl_lightning.plan_page.charts import colour

# The x axis that Lightning logs with every number in W&B.
STEP = "trainer/global_step"


Kind = Literal["curve", "bars", "number", "table"]


REWARDS = {
    "Mean reward": "reward/mean",
    "Standard deviation of rewards": "reward/std",
    "Share of groups without variance": "groups/zero_variance_frac",
    "Groups with variance": "groups/effective",
    "Tokens a group with variance": "groups/tokens_per_effective",
}


POLICY = {
    "Entropy (nats)": "policy/entropy",
    "Tokens clipped below": "policy/clip_low_frac",
    "Tokens clipped above": "policy/clip_high_frac",
    "Gradient norm before clipping": "optim/grad_norm",
}


SAMPLER = {
    "Mismatch, mean (nats)": "sampler/mismatch_mean",
    "Mismatch, largest (nats)": "sampler/mismatch_max",
    "Largest ratio pi / pi_old": "policy/ratio/max",
    "Staleness (steps)": "rollouts/staleness",
}


CORRECTED = {
    "Mean weight of the correction": "policy/correction_mean",
    "Tokens whose weight was capped": "policy/correction_capped_frac",
}


COMPLETIONS = {
    "Mean length (tokens)": "completions/length_mean",
    "Mean length of those that ended": "completions/terminated_length_mean",
    "Longest (tokens)": "completions/length_max",
    "Share cut by max_tokens": "completions/truncated_frac",
}


TIME = {
    "Sampled tokens a second": "throughput/sampled_tokens_per_s",
    "Trained tokens a second": "throughput/trained_tokens_per_s",
    "Generate (s)": "time/generate",
    "Grade (s)": "time/score",
    "Forward (s)": "time/forward",
    "Backward (s)": "time/backward",
    "Optimiser (s)": "time/optimizer",
    "Weights to the engine (s)": "time/sync",
}


# Metrics that the usual operations of each slot log.
PLAN = {
    "filtering": {"prompts dropped": "dropped", "AUC of the probe": "probe/auc"},
    "clustering": {"clusters": "clusters", "largest": "size_max", "smallest": "size_min", "NMI with topics": "nmi"},
    "curriculum": {
        "Spearman of the probe": "probe/spearman",
        "R² of the probe": "probe/r2",
        "Spearman with length": "spearman_length",
    },
    "mixing": {"share moved to another batch": "share"},
    "online": {"chance to vary, predicted": "effective_predicted", "share that varies": "effective", "Brier": "brier"},
}


@dataclass(frozen=True)
class DashboardPanel:
    """A panel of the dashboard.

    Args:
        title: Title above the panel.
        shows: Logged name of a metric, or key of a table.
        kind: Type of the panel: `curve`, `bars` or `number` of the last value, or `table`.
        along: Logged name on a curve's x axis; the step by default.
    """

    title: str
    shows: str
    kind: Kind = "curve"
    along: str = STEP


@dataclass(frozen=True)
class DashboardSection:
    """Panels under one heading of the dashboard."""

    title: str
    panels: Sequence[DashboardPanel]


@dataclass(frozen=True)
class LoggedStudy:
    """The arms of a study, and the names that their settings let them log.

    Args:
        name: Name of the study.
        arms: Names of the arms, in order.
        baseline: Arm that the others are compared with.
        seeds: Number of runs of each arm.
        metric: Metric of the study's primary comparison.
        sets: Number of samples a question, by validation set.
        slots: Slots of operations that at least one arm fills.
        kl: Whether at least one arm has a reference policy.
        correction: Whether at least one arm corrects for the sampler.
        tables: Keys of the tables that at least one arm logs.
    """

    name: str
    arms: Sequence[str]
    baseline: str
    seeds: int
    metric: str
    sets: Mapping[str, int] = field(default_factory=dict)
    slots: Sequence[str] = ()
    kl: bool = False
    correction: bool = False
    tables: Sequence[str] = ()

    @property
    def colours(self) -> dict[str, str]:
        """Colour of each arm, as in the study's report; the baseline is grey."""
        others = [arm for arm in self.arms if arm != self.baseline]
        return {arm: colour(others.index(arm) if arm in others else -1) for arm in self.arms}


def sections(study: LoggedStudy) -> list[DashboardSection]:
    """Lists the sections, the most important first; empty sections are left out."""
    reference = {"Reference (s)": "time/reference"} if study.kl else {}
    policy = {"KL to the reference": "policy/kl"} if study.kl else {}
    found = [
        DashboardSection("The study's metric", [DashboardPanel(study.metric, study.metric)]),
        DashboardSection("Accuracy of each set", [each for name, k in study.sets.items() for each in _set(name, k)]),
        curves("Rewards and groups", REWARDS),
        curves("Policy", {**POLICY, **policy}),
        curves("Sampler against policy", {**SAMPLER, **(CORRECTED if study.correction else {})}),
        curves("Completions", COMPLETIONS),
        DashboardSection("The plan", [bar for slot in PLAN if slot in study.slots for bar in _bars(slot)]),
        curves("Time and throughput of a step", {**TIME, **reference}),
        DashboardSection("Tables", [DashboardPanel(key, key, "table") for key in study.tables]),
    ]
    return [section for section in found if section.panels]


def curves(title: str, metrics: Mapping[str, str]) -> DashboardSection:
    """Makes a section of curves by step.

    Args:
        title: Heading of the section.
        metrics: Logged name of each panel's title.
    """
    return DashboardSection(title, [DashboardPanel(name, metric) for name, metric in metrics.items()])


def _set(name: str, k: int) -> list[DashboardPanel]:
    panels = [DashboardPanel(f"{name}: avg@{k}", f"val/{name}/avg@{k}")]
    # With scores of 0 or 1, pass@1 equals avg@1.
    if k > 1:
        n = 2 ** (k.bit_length() - 1)  # pass@n is logged for powers of two
        panels.append(DashboardPanel(f"{name}: pass@{n}", f"val/{name}/pass@{n}"))
    return [*panels, DashboardPanel(f"{name}: share cut by max_tokens", f"val/{name}/truncated_frac")]


def _bars(slot: str) -> list[DashboardPanel]:
    return [DashboardPanel(f"{slot}: {title}", f"data/{slot}/{metric}", "bars") for title, metric in PLAN[slot].items()]
