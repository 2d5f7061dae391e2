"""Compares arms in pairs: the end, the area, the cost to the target and of a group, paired by seed.

The formulas are in `curves`, `accuracy_intervals` and `statistics`; this module chooses which numbers they are applied
to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.study import statistics
from saerl_lightning.study.accuracy_intervals import VarianceComponents, accuracy_difference, detectable_differences
from saerl_lightning.study.curves import TARGET, area, pseudo_times, steps_to_target
from saerl_lightning.study.questions import Key, QuestionAccuracy, accuracies, measured_sets
from saerl_lightning.study.report.facts import MISSING, UNITS, Curve, Effect, Measure
from saerl_lightning.study.report.numbers import StudyNumbers
from saerl_lightning.study.statistics import holm

# Probability of one or more false findings in the primary family.
ALPHA = 0.05
# Costs to the target.
SPENT: Sequence[Measure] = ("steps", "tokens", "wall")


@dataclass(frozen=True)
class CurveSummary:
    """Summary of one run's curve, with the field names of `RunFact`."""

    last_step: int
    start: float
    end: float
    area: float
    reached: float


@dataclass(frozen=True)
class StudyComparison:
    """Results computed from the curves and questions of all runs."""

    target: float
    measured: Mapping[Key, CurveSummary]  # of all runs with a curve; unfinished runs have no end and no area
    curves: Sequence[Curve]
    effects: Sequence[Effect]
    caveats: Sequence[str]


Points = list[tuple[int, float]]
Spent = Mapping[int, float]  # amount spent up to each step


def compare(study: StudyNumbers) -> StudyComparison:
    """Compares the study's pairs of arms, and corrects the primary family by Holm's method."""
    spec, questions = study.spec, study.questions
    points = {run.key: run.curve(spec.metric) for run in study.runs}
    finished = {run.key: points[run.key] for run in study.runs if run.state == "finished" and len(points[run.key]) > 1}
    target = _target([curve for (arm, _), curve in finished.items() if arm == spec.baseline])
    spent = {measure: _spent(study, finished, measure) for measure in SPENT}
    spent_budget = spent[spec.budget.unit]
    horizon = min((max(own.values()) for own in spent_budget.values()), default=0.0)
    measured = {key: _summary(curve, target, spent_budget.get(key), horizon) for key, curve in points.items() if curve}
    family = [(measure, *pair) for measure in ("end", spec.budget.unit) for pair in spec.family]
    effects = []
    for arm, other in spec.comparisons:
        seeds = [seed for seed in spec.seeds if (arm, seed) in finished and (other, seed) in finished]
        if seeds:
            pair = _Pair(arm, other, seeds, measured)
            alpha = ALPHA / len(family) if (arm, other) in spec.family else ALPHA
            effects += [_end(pair, spec.metric, questions, alpha), _area(pair)]
            effects += [_time(pair, measure, spent[measure]) for measure in SPENT]
            effects += _group(pair, {run.key: run.tokens_per_effective for run in study.runs})
    curves = [curve for arm in spec.arms if (curve := _curve(arm, finished)) is not None]
    caveats = _caveats(study, finished)
    return StudyComparison(target, measured, curves, _by_measure(_corrected(effects, family)), caveats)


@dataclass(frozen=True)
class _Pair:
    """Two arms on the seeds that both have finished."""

    arm: str
    other: str
    seeds: Sequence[int]
    measured: Mapping[Key, CurveSummary]

    def values(self, name: str) -> tuple[list[float], list[float]]:
        """Values of a summary number in the arm's runs and in the other's, in the order of the seeds."""
        arm, other = (
            [float(vars(self.measured[each, seed])[name]) for seed in self.seeds] for each in (self.arm, self.other)
        )
        return arm, other


def _target(baseline: Sequence[Points]) -> float:
    """Target: `TARGET` of the way from the baseline's mean start to its mean end; NaN if it gained nothing."""
    if not baseline:
        return MISSING
    start, end = (float(np.mean([curve[place][1] for curve in baseline])) for place in (0, -1))
    return start + TARGET * (end - start) if end > start else MISSING


def _end(pair: _Pair, metric: str, questions: Mapping[Key, Sequence[QuestionAccuracy]], alpha: float) -> Effect:
    """Estimates the difference at the end, over seeds and, if the metric is a mean over questions, over questions.

    The detectable difference is that of a test at level `alpha`, with these seeds and with twice as many.
    """
    arm, other = pair.values("end")
    known = list(dict.fromkeys(each.set for seed in pair.seeds for each in questions.get((pair.arm, seed), ())))
    own, others = accuracies(questions, [pair.arm, pair.other], pair.seeds, measured_sets(metric, known))
    estimate, components = accuracy_difference(own, others) if own else (statistics.paired_difference(arm, other), None)
    found = _effect(pair, "end", arm, other, estimate)
    if not estimate.error > 0:
        return found
    if components is None:
        components = VarianceComponents(estimate.error**2, 0.0, 0.0, 1.0, estimate.pairs)
    seen, doubled = detectable_differences(components, alpha)
    return replace(found, detectable=seen, detectable_doubled=doubled)


def _area(pair: _Pair) -> Effect:
    arm, other = pair.values("area")
    return _effect(pair, "area", arm, other, statistics.paired_difference(arm, other))


def _time(pair: _Pair, measure: Measure, spent: Mapping[Key, Spent]) -> Effect:
    """Estimates the difference in cost to the target, up to the common budget; other runs are censored."""
    followed = {arm: [max(spent[arm, seed].values()) for seed in pair.seeds] for arm in (pair.arm, pair.other)}
    horizon = min(map(max, followed.values()))
    shares: list[list[float]] = []
    censored: list[int] = []
    for arm in (pair.arm, pair.other):
        times = [_at(pair.measured[arm, seed].reached, spent[arm, seed]) for seed in pair.seeds]
        shares.append(pseudo_times(times, followed[arm], horizon).tolist())
        censored.append(sum(time is None or time > horizon for time in times))
    estimate = statistics.paired_difference(shares[0], shares[1])
    return replace(_effect(pair, measure, shares[0], shares[1], estimate), censored=(censored[0], censored[1]))


def _group(pair: _Pair, cost: Mapping[Key, float]) -> list[Effect]:
    """Estimates the difference in tokens for each group with variance; none if a run of the pair has no such number."""
    arm, other = ([cost[each, seed] for seed in pair.seeds] for each in (pair.arm, pair.other))
    if not np.isfinite([*arm, *other]).all():
        return []
    return [_effect(pair, "group", arm, other, statistics.paired_difference(arm, other))]


def _at(reached: float, spent: Spent) -> float | None:
    """Amount spent when the target was reached; None if it never was."""
    return spent[int(reached)] if np.isfinite(reached) else None


def _effect(
    pair: _Pair, measure: Measure, arm: Sequence[float], other: Sequence[float], found: statistics.Estimate
) -> Effect:
    return Effect(
        measure,
        pair.arm,
        pair.other,
        float(np.mean(arm)),
        float(np.mean(other)),
        Interval(found.value, found.low, found.high),
        len(pair.seeds),
        found.p,
        p_flips=statistics.sign_flip_p(arm, other) if len(arm) <= statistics.EXACT_PAIRS else MISSING,
        error=found.error,
    )


def _corrected(effects: Sequence[Effect], family: Sequence[tuple[str, str, str]]) -> list[Effect]:
    """Adds Holm-adjusted p-values to the primary family: end and cost to the target. Missing arms count too.

    Args:
        effects: Effects of all pairs.
        family: Measure, arm and other of the planned comparisons.
    """
    found = {(each.measure, each.arm, each.other): each for each in effects}
    planned = {" ".join(key): found[key].p if key in found else MISSING for key in family}
    adjusted = holm(planned, ALPHA)
    primary = {key: adjusted[" ".join(key)].adjusted for key in family}
    return [replace(each, p_holm=primary[key], primary=True) if key in primary else each for key, each in found.items()]


def _by_measure(effects: Sequence[Effect]) -> list[Effect]:
    order: Sequence[Measure] = ("end", "steps", "area", "tokens", "group", "wall")
    return [each for measure in order for each in effects if each.measure == measure]


def _spent(study: StudyNumbers, finished: Mapping[Key, Points], measure: Measure) -> dict[Key, Spent]:
    """Amount spent by each finished run up to each point of its curve; seconds include the shared stages."""
    found = {}
    for run in study.runs:
        if run.key in finished:
            before = sum(run.shared.values())
            by_measure = {
                each.step: {"steps": float(each.step), "tokens": each.sampled_tokens, "wall": each.seconds + before}
                for each in run.evaluations
            }
            found[run.key] = {step: by_measure[step][measure] for step, _ in finished[run.key]}
    return found


def _summary(curve: Points, target: float, spent_budget: Spent | None, horizon: float) -> CurveSummary:
    """Summarises a curve; `spent_budget` is the spent budget at each point of a finished run."""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    start = values[0] if steps[0] == 0 else MISSING
    if spent_budget is None:
        return CurveSummary(steps[-1], start, MISSING, MISSING, MISSING)
    reached = steps_to_target(steps, values, target) if np.isfinite(target) else None
    spent = [spent_budget[step] for step in steps]
    height = area(spent, values, horizon) if horizon > spent[0] else MISSING
    return CurveSummary(steps[-1], start, values[-1], height, MISSING if reached is None else reached)


def _curve(arm: str, finished: Mapping[Key, Points]) -> Curve | None:
    """Curves of the arm's runs at the steps that all of them measured; None if there are none."""
    own = {seed: dict(curve) for (name, seed), curve in finished.items() if name == arm}
    steps = sorted(set.intersection(*(set(curve) for curve in own.values()))) if own else []
    if not steps:
        return None
    return Curve(arm, list(own), np.array(steps), np.array([[curve[step] for step in steps] for curve in own.values()]))


def _caveats(study: StudyNumbers, finished: Mapping[Key, Points]) -> list[str]:
    """Sentences of the report that say how the numbers were computed."""
    spec, said = study.spec, []
    known = list(dict.fromkeys(each.set for own in study.questions.values() for each in own))
    over = "seeds and the questions that all runs have answered" if measured_sets(spec.metric, known) else "seeds alone"
    if finished:
        count, noun = len(spec.family), "pair" if spec.contrasts else "arm"
        both = "both arms" if spec.contrasts else "arm and baseline"
        said.append(
            f"Intervals of the end are over {over}, the others over seeds, {both} paired by seed; a difference that is the "
            f"same in every pair has none. Holm's correction is over the end and the {UNITS[spec.budget.unit]} to the target "
            f"of {count} {noun}{'s' * (count != 1)}. The target is half of the baseline's mean gain; it counts as "
            "reached when the mean of three evaluations is there for two in a row; a run that never gets there counts with "
            "the whole budget, and is marked; "
            "steps, tokens and seconds are counted up to what the cheaper of the two arms spent in all."
        )
    if any(run.key in finished and np.isfinite(run.tokens_per_effective) for run in study.runs):
        said.append(
            "Tokens for each group with variance are those of all completions that were sampled in training, screening and "
            "refills included, over the groups of them that varied, trained on or not; completions of shared stages, such "
            "as labels, are in neither number of tokens."
        )
    ended = [run.key for run in study.runs if run.state == "finished"]
    if silent := [f"{arm}, seed {seed}" for arm, seed in ended if (arm, seed) not in finished]:
        said.append(f"Finished, but without a curve of {spec.metric}, and in no number: {'; '.join(silent)}.")
    return said
