"""Recovery of an arm: the share of what its study's oracle earns over the null, (arm - null) / (oracle - null).

It says how much of what there is to earn a signal earns, so that signals of one world can be compared. The end is that of
`effects`: over seeds, and over questions where the metric is a mean over them. The area is over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.tables import Table, count
from saerl_lightning.study.accuracy_intervals import Accuracies, accuracy_difference
from saerl_lightning.study.effects import StudyComparison
from saerl_lightning.study.questions import accuracies, measured_sets
from saerl_lightning.study.report.facts import OperationScore, Recovery, StudyFacts
from saerl_lightning.study.report.findings import amount, signed, signed_interval
from saerl_lightning.study.report.numbers import StudyNumbers
from saerl_lightning.study.report.tables import CENSORED, around, sheet
from saerl_lightning.study.spec import Gate
from saerl_lightning.study.statistics import Estimate, mean_estimate, ratio_estimate

UNBOUNDED = "not bounded: oracle and null are too near"
# Scores of an operation that say how much it knows, the first that a run logged: of labels 0/1, of ratings, of clusters.
QUALITIES = ("probe/auc", "probe/spearman", "ami")


@dataclass(frozen=True)
class Trio:
    """One number of the runs of three arms on their common seeds, and their questions' accuracies if it is a mean of them."""

    runs: Sequence[np.ndarray]  # arm, null and oracle, each (S,)
    questions: Sequence[Accuracies] = ()  # the same, each set (S, Q)

    def combined(self, numerator: float, denominator: float) -> Estimate:
        """Estimates numerator · (arm - null) - denominator · (oracle - null)."""
        weights = numerator, denominator - numerator, -denominator
        if not self.questions or not all(self.questions):
            return mean_estimate(_weighted(self.runs, weights).tolist())
        first, *_ = self.questions
        tables = {name: _weighted([own[name] for own in self.questions], weights) for name in first}
        return accuracy_difference(tables, {name: np.zeros_like(table) for name, table in tables.items()})[0]


def _weighted(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return np.sum([weight * array for weight, array in zip(weights, arrays, strict=True)], 0)


def recoveries(study: StudyNumbers, compared: StudyComparison, scores: Sequence[OperationScore]) -> list[Recovery]:
    """Computes the recovery of every arm, on the seeds that it, oracle and null have finished; none without a gate.

    Args:
        study: Numbers of the study's runs.
        compared: Results of `compare` for the same study.
        scores: Scores that the arms' operations logged.
    """
    gate = study.spec.gate
    if gate is None:
        return []
    before = _seconds_before(study)
    found = []
    for arm in study.spec.arms:
        trio = (arm, gate.null, gate.oracle)
        seeds = [
            seed
            for seed in study.spec.seeds
            if all(
                (each, seed) in compared.measured and np.isfinite(compared.measured[each, seed].end) for each in trio
            )
        ]
        if seeds:
            own = _recovery(_ends(study, compared, trio, seeds), _areas(compared, trio, seeds), arm, gate)
            found.append(
                replace(
                    own,
                    **_tokens(study, compared, arm),
                    signal_s=before[arm] - before[gate.null],
                    **_quality(arm, scores),
                )
            )
    return found


def _recovery(ends: Trio, areas: Trio, arm: str, gate: Gate) -> Recovery:
    """Estimates gain and recoveries; those of null and oracle are 0 and 1 by definition."""
    gain = ends.combined(1.0, 0.0)
    defined = {gate.null: Interval(0.0), gate.oracle: Interval(1.0)}
    end, area = (defined.get(arm) or ratio_estimate(each.combined) for each in (ends, areas))
    return Recovery(arm, len(ends.runs[0]), Interval(gain.value, gain.low, gain.high), end, area)


def _ends(study: StudyNumbers, compared: StudyComparison, trio: Sequence[str], seeds: Sequence[int]) -> Trio:
    questions = study.questions
    known = list(dict.fromkeys(each.set for arm in trio for seed in seeds for each in questions.get((arm, seed), ())))
    sets = measured_sets(study.spec.metric, known)
    ends = [np.array([compared.measured[arm, seed].end for seed in seeds]) for arm in trio]
    return Trio(ends, accuracies(questions, trio, seeds, sets))


def _areas(compared: StudyComparison, trio: Sequence[str], seeds: Sequence[int]) -> Trio:
    return Trio([np.array([compared.measured[arm, seed].area for seed in seeds]) for arm in trio])


def _seconds_before(study: StudyNumbers) -> dict[str, float]:
    """Mean seconds of each arm's runs before training: the shared stages that it uses, and its plan."""
    return {
        arm: float(np.mean([sum(run.shared.values()) + run.costs.get("plan_s", 0.0) for run in runs]))
        for arm in study.spec.arms
        if (runs := study.finished(arm))
    }


def _tokens(study: StudyNumbers, compared: StudyComparison, arm: str) -> dict[str, Any]:
    """Sampled tokens to the target, as they stand in the comparison with the baseline, and the runs that never got there."""
    baseline = study.spec.baseline
    for each in compared.effects:
        if each.measure == "tokens" and each.other == baseline and arm in (each.arm, baseline):
            first = arm == each.arm
            return {"tokens": each.arm_value if first else each.other_value, "censored": each.censored[not first]}
    return {}


def _quality(arm: str, scores: Sequence[OperationScore]) -> dict[str, Any]:
    """The first of `QUALITIES` that the arm's operations logged."""
    own = [each for each in scores if each.arm == arm]
    found = [each for end in QUALITIES for each in own if each.name.endswith(f"/{end}")]
    return {"score": found[0].name, "quality": found[0].interval} if found else {}


def recovery_table(facts: StudyFacts) -> Table:
    """Table of the share of the oracle's gain that each arm earns, beside the price and the quality of its signal."""
    columns = (
        "arm", "seeds", "end − null", "95 % interval", "recovery of the end", "recovery of the area", "tokens to target",
        "signal, s", "quality", "by",
    )  # fmt: skip
    rows = [
        (
            each.arm,
            count(each.seeds),
            signed(each.gain.value),
            signed_interval(each.gain),
            share_of_gain(each.end),
            share_of_gain(each.area),
            amount(each.tokens) + CENSORED * bool(each.censored),
            amount(each.signal_s),
            around(each.quality),
            each.score,
        )
        for each in facts.recoveries
    ]
    return Table("recovery", "Recovery", columns, rows)


def share_of_gain(recovery: Interval) -> str:
    """Writes a recovery with its interval, or says that it is not bounded."""
    return UNBOUNDED if np.isinf(recovery.high) else around(recovery)


def recovery_sheet(facts: StudyFacts) -> dict[str, str]:
    """Builds `recovery.csv` if there are recoveries; one that is not bounded has neither a value nor ends."""
    if not facts.recoveries:
        return {}
    parts = ("gain", "end", "area", "quality")
    columns = [f"{part}{end}" for part in parts for end in ("", "_low", "_high")]
    rows = [
        [
            each.arm,
            each.seeds,
            *(number for part in (each.gain, each.end, each.area, each.quality) for number in _cells(part)),
            *("no" if np.isinf(part.high) else "yes" for part in (each.end, each.area)),
            each.tokens,
            each.censored,
            each.signal_s,
            each.score,
        ]
        for each in facts.recoveries
    ]
    after = ["end_bounded", "area_bounded", "tokens", "censored", "signal_s", "score"]
    return {"recovery.csv": sheet(["arm", "seeds", *columns, *after], rows)}


def _cells(estimate: Interval) -> tuple[float, ...]:
    return (np.nan,) * 3 if np.isinf(estimate.high) else (estimate.value, estimate.low, estimate.high)
