"""The study's comparisons: what each finished run measured, and each arm against the baseline, pair by pair of seeds.

The numbers come from `study.curves`, `censoring`, `bootstrap` and `statistics`; here stands only what is compared with what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saerl_lightning.study import statistics
from saerl_lightning.study.accuracy_intervals import accuracy_difference
from saerl_lightning.study.curves import TARGET, area, pseudo_times, steps_to_target
from saerl_lightning.study.questions import Key, Question, accuracies, measured_sets
from saerl_lightning.study.report.facts import MISSING, UNITS, Curve, Effect, Estimate, Measure
from saerl_lightning.study.report.numbers import StudyNumbers
from saerl_lightning.study.statistics import holm

ALPHA = 0.05  # chance of any false finding in the primary family
SPENT: Sequence[Measure] = ("steps", "tokens", "wall")  # what a run spends on its way


@dataclass(frozen=True)
class Measured:
    """What one run's curve says; the fields are those of `RunFact`."""

    steps: int
    start: float
    end: float
    area: float
    reached: float


@dataclass(frozen=True)
class Comparison:
    """All that is computed from the runs' curves and questions."""

    primary: Sequence[str]
    target: float
    measured: Mapping[Key, Measured]  # finished runs, and others as far as they came
    curves: Sequence[Curve]
    effects: Sequence[Effect]
    notes: Sequence[str]


Points = list[tuple[int, float]]
Spent = Mapping[int, float]  # by step


def compare(study: StudyNumbers) -> Comparison:
    """Compares every arm with the baseline."""
    spec, questions = study.spec, study.questions
    points = {run.key: run.curve(spec.metric) for run in study.runs}
    finished = {run.key: points[run.key] for run in study.runs if run.state == "finished" and len(points[run.key]) > 1}
    target = _target([curve for (arm, _), curve in finished.items() if arm == spec.baseline])
    spent = {measure: _spent(study, finished, measure) for measure in SPENT}
    along = spent[spec.budget.unit]
    horizon = min((max(own.values()) for own in along.values()), default=0.0)
    measured = {key: _measured(curve, target, along.get(key), horizon) for key, curve in points.items() if curve}
    primary = list(spec.primary) or [arm for arm in spec.arms if arm != spec.baseline]
    family = [f"{measure} {arm}" for measure in ("end", spec.budget.unit) for arm in primary]
    effects = []
    for arm in [*primary, *(arm for arm in spec.arms if arm not in primary and arm != spec.baseline)]:
        seeds = [seed for seed in spec.seeds if (arm, seed) in finished and (spec.baseline, seed) in finished]
        if seeds:
            pair = _Pair(arm, spec.baseline, seeds, measured)
            alpha = ALPHA / len(family) if arm in primary else ALPHA
            effects += [_end(pair, spec.metric, questions, alpha), _area(pair)]
            effects += [_time(pair, measure, spent[measure]) for measure in SPENT]
    curves = [curve for arm in spec.arms if (curve := _curve(arm, finished)) is not None]
    notes = _notes(study, finished, len(primary))
    return Comparison(primary, target, measured, curves, _by_measure(_corrected(effects, family)), notes)


@dataclass(frozen=True)
class _Pair:
    """Two arms on the seeds that both have finished."""

    arm: str
    baseline: str
    seeds: Sequence[int]
    measured: Mapping[Key, Measured]

    def values(self, name: str) -> tuple[list[float], list[float]]:
        """A measured number of the arm's runs, and of the baseline's, in the order of the seeds."""
        arm, baseline = (
            [float(vars(self.measured[each, seed])[name]) for seed in self.seeds] for each in (self.arm, self.baseline)
        )
        return arm, baseline


def _target(baseline: Sequence[Points]) -> float:
    """The share `TARGET` of the way from the baseline's mean start to its mean end; none where it gained nothing."""
    if not baseline:
        return MISSING
    start, end = (float(np.mean([curve[place][1] for curve in baseline])) for place in (0, -1))
    return start + TARGET * (end - start) if end > start else MISSING


def _end(pair: _Pair, metric: str, questions: Mapping[Key, Sequence[Question]], alpha: float) -> Effect:
    """The difference at the end, over seeds and questions where the metric is a mean over these.

    What could have been seen is that of a test at `alpha`, with these seeds and with twice as many.
    """
    arm, baseline = pair.values("end")
    known = list(dict.fromkeys(each.set for seed in pair.seeds for each in questions.get((pair.arm, seed), ())))
    own, other = accuracies(questions, [pair.arm, pair.baseline], pair.seeds, measured_sets(metric, known))
    twice = 2 * len(pair.seeds)
    if own:
        estimate, parts = accuracy_difference(own, other)
        planned = parts.planned(twice) if len(pair.seeds) > 1 else parts
        doubled = (planned.error, planned.shares)
    else:
        estimate = statistics.paired_difference(arm, baseline)
        doubled = (estimate.error / np.sqrt(2), ((1.0, twice - 1.0),))
    seen, seen_doubled = (
        statistics.detectable_difference(error, parts, alpha=alpha) if estimate.error > 0 else MISSING
        for error, parts in ((estimate.error, estimate.parts), doubled)
    )
    return replace(_effect(pair, "end", arm, baseline, estimate), detectable=seen, detectable_doubled=seen_doubled)


def _area(pair: _Pair) -> Effect:
    arm, baseline = pair.values("area")
    return _effect(pair, "area", arm, baseline, statistics.paired_difference(arm, baseline))


def _time(pair: _Pair, measure: Measure, spent: Mapping[Key, Spent]) -> Effect:
    """What the target takes, restricted to what both arms were followed to; a run that never reached it is censored."""
    followed = {arm: [max(spent[arm, seed].values()) for seed in pair.seeds] for arm in (pair.arm, pair.baseline)}
    horizon = min(map(max, followed.values()))
    shares: list[list[float]] = []
    censored: list[int] = []
    for arm in (pair.arm, pair.baseline):
        times = [_at(pair.measured[arm, seed].reached, spent[arm, seed]) for seed in pair.seeds]
        shares.append(pseudo_times(times, followed[arm], horizon).tolist())
        censored.append(sum(time is None or time > horizon for time in times))
    estimate = statistics.paired_difference(shares[0], shares[1])
    return replace(_effect(pair, measure, shares[0], shares[1], estimate), censored=(censored[0], censored[1]))


def _at(reached: float, spent: Spent) -> float | None:
    """What was spent when a step was done; None for a target that was never reached."""
    return spent[int(reached)] if np.isfinite(reached) else None


def _effect(
    pair: _Pair, measure: Measure, arm: Sequence[float], baseline: Sequence[float], found: statistics.Estimate
) -> Effect:
    return Effect(
        measure,
        pair.arm,
        float(np.mean(arm)),
        float(np.mean(baseline)),
        Estimate(found.value, found.low, found.high),
        len(pair.seeds),
        found.p,
        p_flips=statistics.sign_flip_p(arm, baseline) if len(arm) <= statistics.EXACT_PAIRS else MISSING,
    )


def _corrected(effects: Sequence[Effect], family: Sequence[str]) -> list[Effect]:
    """Puts Holm's p on the primary family, the end and the pace; an arm that can't be compared yet counts in it."""
    found = {f"{each.measure} {each.arm}": each.p for each in effects}
    adjusted = holm({name: found.get(name, MISSING) for name in family}, ALPHA)
    return [
        replace(each, p_holm=adjusted[name].adjusted, primary=True)
        if (name := f"{each.measure} {each.arm}") in adjusted
        else each
        for each in effects
    ]


def _by_measure(effects: Sequence[Effect]) -> list[Effect]:
    return [
        each for measure in ("end", "steps", "area", "tokens", "wall") for each in effects if each.measure == measure
    ]


def _spent(study: StudyNumbers, finished: Mapping[Key, Points], measure: Measure) -> dict[Key, Spent]:
    """For each finished run what it had spent up to each point of its curve; seconds count the shared stages in."""
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


def _measured(curve: Points, target: float, along: Spent | None, horizon: float) -> Measured:
    """What a curve says; `along` is what a finished run had spent of its budget at each of its points."""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    start = values[0] if steps[0] == 0 else MISSING
    if along is None:
        return Measured(steps[-1], start, MISSING, MISSING, MISSING)
    reached = steps_to_target(steps, values, target) if np.isfinite(target) else None
    spent = [along[step] for step in steps]
    height = area(spent, values, horizon) if horizon > spent[0] else MISSING
    return Measured(steps[-1], start, values[-1], height, MISSING if reached is None else reached)


def _curve(arm: str, finished: Mapping[Key, Points]) -> Curve | None:
    """The arm's runs at the steps that all of them measured; None where there are none."""
    own = {seed: dict(curve) for (name, seed), curve in finished.items() if name == arm}
    steps = sorted(set.intersection(*(set(curve) for curve in own.values()))) if own else []
    if not steps:
        return None
    return Curve(arm, list(own), np.array(steps), np.array([[curve[step] for step in steps] for curve in own.values()]))


def _notes(study: StudyNumbers, finished: Mapping[Key, Points], arms: int) -> list[str]:
    """What the reader must know of how the numbers were made."""
    spec, said = study.spec, []
    known = list(dict.fromkeys(each.set for own in study.questions.values() for each in own))
    over = "seeds and the questions that all runs have answered" if measured_sets(spec.metric, known) else "seeds alone"
    if finished:
        said.append(
            f"Intervals of the end are over {over}, the others over seeds, arm and baseline paired by seed; a difference "
            f"that is the same in every pair has none. Holm's correction is over the end and the {UNITS[spec.budget.unit]} "
            f"to the target of {arms} arm{'s' * (arms != 1)}. The target is half of the baseline's mean gain; it counts as "
            "reached when the mean of three evaluations is there for two in a row; a run that never gets there counts with "
            "the whole budget, and is marked; "
            "steps, tokens and seconds are counted up to what the cheaper of the two arms spent in all."
        )
    ended = [run.key for run in study.runs if run.state == "finished"]
    if silent := [f"{arm}, seed {seed}" for arm, seed in ended if (arm, seed) not in finished]:
        said.append(f"Finished, but without a curve of {spec.metric}, and in no number: {'; '.join(silent)}.")
    return said
