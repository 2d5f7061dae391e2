"""What a study's report shows, as plain records: numbers and texts that are already computed. It reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.plan_page.ledger import Ledger

MISSING = float("nan")
State = Literal["waiting", "running", "stopped", "finished", "failed"]  # as `study.run_state` names them
Measure = Literal["end", "area", "steps", "tokens", "wall"]  # the last three: to the target
Unit = Literal["steps", "tokens"]  # of a budget
UNITS: Mapping[Unit, str] = {"steps": "steps", "tokens": "sampled tokens"}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where there is none."""

    value: float = MISSING
    low: float = MISSING
    high: float = MISSING

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite([self.low, self.high]).all())


@dataclass(frozen=True)
class ArmFact:
    """An arm as the study's file describes it."""

    name: str
    description: str = ""
    settings: str = ""  # its configs and flags, as on a command line


@dataclass(frozen=True)
class RunFact:
    """One training run: what became of it. Numbers are NaN where it never got to them."""

    arm: str
    seed: int
    state: State
    steps: int = 0  # of the last validation
    start: float = MISSING  # the metric before training
    end: float = MISSING  # at the budget; a run that stopped early has none
    area: float = MISSING  # mean height of the curve up to the budget
    reached: float = MISSING  # step at which it reached the target for good; NaN where it never did (censored)
    seconds: float = MISSING
    config: str = ""  # path from the report's folder; "" where there is none
    error: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """An arm's validation curves, K runs at S steps that all have in common."""

    arm: str
    seeds: Sequence[int]  # K
    steps: Int[np.ndarray, " S"]
    values: Float[np.ndarray, "K S"]

    @property
    def mean(self) -> Float[np.ndarray, " S"]:
        """Mean over runs."""
        return self.values.mean(0)


@dataclass(frozen=True)
class Effect:
    """An arm against the baseline by one measure, over the seeds that both have finished."""

    measure: Measure
    arm: str
    arm_value: float
    baseline_value: float
    difference: Estimate  # arm minus baseline
    seeds: int  # pairs
    p: float = MISSING
    p_holm: float = MISSING  # NaN outside of the primary family, and where there is no p
    primary: bool = False  # whether it is in the primary family
    censored: tuple[int, int] = (0, 0)  # runs of the arm, and of the baseline, that never reached the target
    detectable: float = MISSING  # smallest difference seen four times in five, by a test as strict as its family asks
    detectable_doubled: float = MISSING  # the same with twice as many seeds
    p_flips: float = MISSING  # exact, of swapping the arms within pairs; NaN with more than 20

    @property
    def significant(self) -> bool:
        """Whether it stands after Holm's correction at 5 %; never outside of the primary family."""
        return self.primary and bool(self.p_holm <= 0.05)


@dataclass(frozen=True)
class Cost:
    """What one run of an arm costs on average, with its part of what arms share."""

    arm: str
    runs: int  # that the mean is over
    parts: Mapping[str, float]  # "sae_s", "generate_s", "sampled_tokens": seconds and tokens by their suffix
    wall_s: float = MISSING  # a run's own seconds, plus the seconds of every shared stage that the arm uses

    # Shared seconds are counted whole in each arm: alone, the arm would have had to spend them.


@dataclass(frozen=True)
class Group:
    """Accuracy of every arm on one set, topic or level, at the end."""

    kind: str  # "set", "topic", "level"
    name: str
    questions: int
    accuracy: Mapping[str, float]  # by arm, mean over runs and questions


@dataclass(frozen=True, eq=False)
class PlanMap:
    """The plan of one run."""

    arm: str
    seed: int
    ledger: Ledger


@dataclass(frozen=True)
class Score:
    """What an operation said of itself (`data/<slot>/<metric>`), mean over an arm's runs."""

    arm: str
    name: str  # "curriculum/probe/spearman"
    estimate: Estimate


@dataclass(frozen=True)
class Panel:
    """A section made elsewhere: causes, drift, or anything of one's own.

    Args:
        title: its heading.
        text: what it shows and what it can't; plain text, a blank line between paragraphs.
        columns: of the table.
        rows: of the table, as text.
        figure: plotly's JSON (`{"data": [...], "layout": {...}}`); null for a table alone.
    """

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: Mapping[str, Any] | None = None

    @property
    def paragraphs(self) -> list[str]:
        """The text's paragraphs: the finding first, then how it was found."""
        return [part.strip() for part in self.text.split("\n\n")]


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """Everything that the report shows.

    Args:
        digest: of the study's file.
        metric: that arms are compared by.
        budget: what every run may spend, in words ("60 steps").
        target: half-way from the baseline's mean start to its mean end; NaN where it has not finished or gained nothing.
        common: what all seeds have in common.
        unit: of the budget; curves' areas and the way to the target are measured in it first.
        primary: the arms that Holm's correction is over.
        arms: in the study's order, the baseline among them.
        runs: every run that the study plans, whatever became of it.
        panels: sections from elsewhere, at the end of the page.
    """

    name: str
    digest: str
    created: str
    metric: str
    budget: str
    baseline: str
    primary: Sequence[str]
    arms: Sequence[ArmFact]
    runs: Sequence[RunFact]
    target: float = MISSING
    common: Sequence[str] = ()
    unit: Unit = "steps"
    curves: Sequence[Curve] = ()
    effects: Sequence[Effect] = ()
    costs: Sequence[Cost] = ()
    groups: Sequence[Group] = ()
    maps: Sequence[PlanMap] = ()
    scores: Sequence[Score] = ()
    panels: Sequence[Panel] = ()
    notes: Sequence[str] = field(default=())  # what the reader must know of how the numbers were made

    def finished(self, arm: str) -> list[RunFact]:
        """The arm's runs that finished."""
        return [run for run in self.runs if run.arm == arm and run.state == "finished"]

    def effect(self, measure: Measure, arm: str) -> Effect | None:
        """The arm's effect by a measure; None where none can be computed."""
        return next((each for each in self.effects if (each.measure, each.arm) == (measure, arm)), None)
