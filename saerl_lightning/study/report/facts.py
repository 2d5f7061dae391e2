"""Records of everything that a study's report shows: computed numbers and texts. No file is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.study.report.section import Section
from saerl_lightning.study.run_record import State
from saerl_lightning.study.spec import Contrast

MISSING = float("nan")
# "steps", "tokens" and "wall" are costs to the target, "group" the tokens for each group with variance.
Measure = Literal["end", "area", "steps", "tokens", "group", "wall"]
Unit = Literal["steps", "tokens"]  # of a budget
UNITS: Mapping[Unit, str] = {"steps": "steps", "tokens": "sampled tokens"}


@dataclass(frozen=True)
class ArmFact:
    """An arm as the study's file describes it."""

    name: str
    description: str = ""
    settings: str = ""  # configs and flags, as on a command line


@dataclass(frozen=True)
class RunFact:
    """Result of one training run. Numbers are NaN if the run did not get that far."""

    arm: str
    seed: int
    state: State
    last_step: int = 0  # optimiser steps done at the last validation
    start: float = MISSING  # the metric before training
    end: float = MISSING  # the metric at the end of the budget; missing in a run that stopped early
    area: float = MISSING  # mean height of the curve up to the budget
    reached: float = MISSING  # step at which the run reached the target and stayed there; NaN if it did not (censored)
    seconds: float = MISSING
    config: str = ""  # path from the report's folder; "" where there is none
    error: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """Validation curves of an arm: K runs at the S steps that all of them measured."""

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
    """Difference of two arms in one measure, over the seeds that both have finished."""

    measure: Measure
    arm: str
    other: str  # the baseline, or the second arm of a contrast
    arm_value: float
    other_value: float
    difference: Interval  # arm minus other
    seeds: int  # number of pairs
    p: float = MISSING
    p_holm: float = MISSING  # p after Holm's correction; NaN outside of the primary family and without p
    primary: bool = False  # whether it is in the primary family
    censored: tuple[int, int] = (0, 0)  # runs of the arm, and of the other, that never reached the target
    detectable: float = MISSING  # smallest true difference that is found with 80 % power, at the level of its family
    detectable_doubled: float = MISSING  # the same with twice as many seeds
    p_flips: float = MISSING  # exact sign-flip p-value; NaN with more than 20 pairs
    error: float = MISSING  # standard error of the difference; NaN with one pair

    @property
    def significant(self) -> bool:
        """Whether p is at most 5 % after Holm's correction; False outside of the primary family."""
        return self.primary and bool(self.p_holm <= 0.05)


@dataclass(frozen=True)
class Recovery:
    """Share of what the oracle earns over the null that an arm earns, beside the price and quality of its signal.

    Intervals of recoveries reach from -inf to inf where oracle and null are too near.
    """

    arm: str
    seeds: int  # that the arm, oracle and null have finished
    gain: Interval  # arm minus null at the end
    end: Interval  # recovery of the end
    area: Interval  # recovery of the area under the curve
    tokens: float = MISSING  # sampled tokens to the target
    censored: int = 0  # runs that never reached the target
    # Seconds before training beyond the null's: shared stages that the arm uses, and its plan.
    signal_s: float = MISSING
    score: str = ""  # name of the score that says how much the operation knows; "" for none
    quality: Interval = field(default_factory=Interval)  # the score's value


@dataclass(frozen=True)
class Cost:
    """Mean cost of a run of an arm, including the shared stages that it uses."""

    arm: str
    runs: int  # number of runs in the mean
    amounts: Mapping[str, float]  # by name: "sae_s", "generate_s" in seconds, "sampled_tokens" in tokens
    # A run's own seconds, plus those of every shared stage that the arm uses. Shared seconds count in full for each arm,
    # because the arm alone would need them too.
    wall_s: float = MISSING
    # Mean over runs of the sampled tokens for each group with variance.
    group: Interval = field(default_factory=Interval)


@dataclass(frozen=True)
class Group:
    """Accuracy of every arm on one set, topic or level at the end."""

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
class OperationScore:
    """A score that an operation logged (`data/<slot>/<metric>`), as a mean over an arm's runs."""

    arm: str
    name: str  # "curriculum/probe/spearman"
    interval: Interval


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """All facts that the report shows.

    Args:
        digest: Digest of the study's configurations.
        metric: Metric by which arms are compared.
        budget: Budget of every run in words, such as "60 steps".
        target: Value half-way from the baseline's mean start to its mean end; NaN if the baseline has not finished or
            gained nothing.
        common: Names of what all seeds have in common.
        unit: Unit of the budget; areas and the primary cost to the target are measured in it.
        primary: Pairs of the primary family, over which Holm's correction goes.
        arms: All arms in the study's order, including the baseline.
        runs: All planned runs, in whatever state.
        recoveries: Recovery of every arm, in a study with a gate.
        gate: Result of the study's gate in a sentence; "" if the study has none.
        warned: Sentences that runs said of their data: operations that did nothing or acted at random, and plans of which
            one end was served.
        sections: Sections that other tools have written, shown at the end of the page.
    """

    name: str
    digest: str
    created: str
    metric: str
    budget: str
    baseline: str
    primary: Sequence[Contrast]
    arms: Sequence[ArmFact]
    runs: Sequence[RunFact]
    target: float = MISSING
    common: Sequence[str] = ()
    unit: Unit = "steps"
    curves: Sequence[Curve] = ()
    effects: Sequence[Effect] = ()
    recoveries: Sequence[Recovery] = ()
    gate: str = ""
    costs: Sequence[Cost] = ()
    groups: Sequence[Group] = ()
    maps: Sequence[PlanMap] = ()
    scores: Sequence[OperationScore] = ()
    warned: Sequence[str] = ()
    sections: Sequence[Section] = ()
    caveats: Sequence[str] = field(default=())  # sentences that say how the numbers were computed

    def finished(self, arm: str) -> list[RunFact]:
        """Finished runs of an arm."""
        return [run for run in self.runs if run.arm == arm and run.state == "finished"]

    def named(self, arm: str, other: str) -> str:
        """Name of a comparison: the arm if it is compared with the baseline, else both."""
        return arm if other == self.baseline else f"{arm} − {other}"

    @property
    def contrasted(self) -> bool:
        """Whether some arms are compared with another one than the baseline."""
        return any(other != self.baseline for _, other in self.primary)

    @property
    def family(self) -> list[str]:
        """Names of the primary comparisons."""
        return [self.named(*pair) for pair in self.primary]

    def primary_effects(self, measure: Measure) -> list[Effect]:
        """Effects of the primary family in a measure, without those that can't be computed."""
        found = (self.effect(measure, *pair) for pair in self.primary)
        return [each for each in found if each is not None]

    def effect(self, measure: Measure, arm: str, other: str | None = None) -> Effect | None:
        """Effect of an arm in a measure, against the baseline or another arm; None if it can't be computed."""
        key = (measure, arm, other or self.baseline)
        return next((each for each in self.effects if (each.measure, each.arm, each.other) == key), None)
