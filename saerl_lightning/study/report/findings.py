"""Sentences of the report: the result in two sentences, and its limits. All numbers are computed elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page.tables import count, number
from saerl_lightning.study.report.facts import UNITS, Effect, StudyFacts

NAMED = 4  # largest number of arms that a sentence names
MISSING_RUNS = {"failed": "failed", "running": "running", "stopped": "stopped", "waiting": "not started"}
FEW = 5  # number of seeds an arm below which the page warns (method.md, section 5)


def status(facts: StudyFacts) -> str:
    """Says how many runs are missing, and why; "" if every run has finished."""
    states = Counter(run.state for run in facts.runs)
    if states["finished"] == len(facts.runs):
        return ""
    parts = [f"{count(states[state])} {word}" for state, word in MISSING_RUNS.items() if states[state]]
    begun = any(states[state] for state in MISSING_RUNS if state != "failed")
    return (
        f"{'UNFINISHED' if begun else 'WITH FAILED RUNS'}: {count(states['finished'])} of {count(len(facts.runs))} runs "
        f"have finished ({', '.join(parts)}). "
        + ("What stands here is provisional." if begun else "What stands here is of the others.")
    )


def answer(facts: StudyFacts) -> list[str]:
    """Two sentences: accuracy at the end, then cost to the target; only one if nothing can be compared."""
    ends = facts.primary_effects("end")
    if not ends:
        seeds = "no seed has finished in both" if len(facts.arms) > 1 else "there is one arm"
        other = "another" if facts.contrasted else facts.baseline
        return [f"Nothing can be said yet: no arm can be held against {other}, as {seeds}."]
    return [_one_end(facts, ends[0]) if len(ends) == 1 else _many_ends(facts, ends), _pace(facts)]


def cautions(facts: StudyFacts) -> list[str]:
    """Sentences about the limits: few seeds, power, unequal arms, idle operations, and how the numbers were computed."""
    said = []
    seeds = [len(facts.finished(arm.name)) for arm in facts.arms]
    if min(seeds, default=0) < FEW:
        said.append(
            f"The arms have {_span(seeds)} finished seeds each; below {FEW} an interval over seeds is wide, and rests on "
            "the seeds being like others."
        )
    ends = [each for each in facts.effects if each.measure == "end" and np.isfinite(each.detectable)]
    if judged := [each for each in ends if each.primary] or ends:
        hardest = max(judged, key=lambda each: each.detectable)
        family = sum(each.primary for each in facts.effects)
        level = f"after Holm's correction for {family} comparisons" if hardest.primary else "one comparison alone"
        more = (
            f"; with twice as many seeds, one of {number(hardest.detectable_doubled)}"
            if np.isfinite(hardest.detectable_doubled)
            else ""
        )
        said.append(
            f"Power: with these seeds and questions a true difference of {number(hardest.detectable)} at the end would be "
            f"found four times in five (two-sided, 5 %, {level}){more}; a smaller one is more likely missed."
        )
    if facts.common:
        said.append(f"All seeds have in common: {', '.join(facts.common)}; no interval holds the luck of these.")
    return [*said, *facts.warned, *facts.caveats]


def signed(value: float) -> str:
    """Writes a difference with its sign; a dash if there is none."""
    # Two sums of the same numbers may differ by this much.
    if abs(value) < 5e-10:
        return "0"
    return f"+{amount(value)}" if value > 0 else amount(value)


def amount(value: float) -> str:
    """Writes a number; from 1,000 on without decimals."""
    return count(value) if 1000 <= abs(value) < np.inf else number(value)


def signed_interval(estimate: Interval) -> str:
    """Writes a difference's 95 % interval with signs; a dash if there is none."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}" if estimate.known else "–"


def _one_end(facts: StudyFacts, effect: Effect) -> str:
    around = f"95 % interval {signed_interval(effect.difference)}" if effect.difference.known else "no interval"
    about = f"({number(effect.arm_value)} against {number(effect.other_value)}; {around}; {_p(effect)}{_seeds(effect)})"
    if effect.significant:
        way = "above" if effect.difference.value > 0 else "below"
        by = number(abs(effect.difference.value))
        return f"After {facts.budget}, {effect.arm} ends {by} {way} {effect.other} on {facts.metric} {about}."
    seen = f"; this design would have found {number(effect.detectable)} four times in five"
    return (
        f"After {facts.budget}, {effect.arm} cannot be told from {effect.other} on {facts.metric}: the difference is "
        f"{signed(effect.difference.value)} {about}{seen if np.isfinite(effect.detectable) else ''}."
    )


def _many_ends(facts: StudyFacts, ends: Sequence[Effect]) -> str:
    sure = [each for each in ends if each.significant]
    better = [each for each in sure if each.difference.value > 0]
    worse = [each for each in sure if each.difference.value <= 0]
    rest = [each for each in ends if not each.significant]
    held, it = ("comparisons", "0") if facts.contrasted else (f"arms held against {facts.baseline}", "it")
    opening = f"After {facts.budget}, of {count(len(ends))} {held} on {facts.metric}, "
    if not sure:
        return f"{opening}none can be told from {it} ({_named(facts, ends)})."
    parts = [
        f"{count(len(group))} {'ends' if len(group) == 1 else 'end'} {way} {it} ({_named(facts, group)})"
        for group, way in ((better, "above"), (worse, "below"))
        if group
    ]
    told = f"{count(len(rest))} cannot be told from {it} ({_named(facts, rest)})" if rest else ""
    return f"{opening}{_listed([*parts, *([told] if told else [])])}."


def _pace(facts: StudyFacts) -> str:
    effects = facts.primary_effects(facts.unit)
    unit = UNITS[facts.unit]
    if not effects or not np.isfinite(facts.target):
        return f"{unit.capitalize()} to the target can't be compared: no finished runs of {facts.baseline} gained."
    target = f"the target of {number(facts.target)}, half of {facts.baseline}'s mean gain,"
    if all(each.censored == (each.seeds, each.seeds) for each in effects):
        return f"No run has reached {target} for good, so the {unit} to it say nothing."
    sure = [each for each in effects if each.significant]
    if sure:
        told = [
            f"{each.arm} reaches {target if first else 'it'} {amount(abs(each.difference.value))} {unit} "
            f"{'sooner' if each.difference.value < 0 else 'later'}{_than(facts, each)} ({signed_interval(each.difference)}"
            f"{_censored(each)})"
            for first, each in zip([True] + [False] * len(sure), sure[:NAMED], strict=False)
        ]
        return f"{_listed(told)}." if len(sure) <= NAMED else f"{_listed(told)}, and {len(sure) - NAMED} more differ."
    if len(effects) == 1:
        only = effects[0]
        return (
            f"Whether it reaches {target} sooner or later{_than(facts, only)} cannot be told: the difference is "
            f"{signed(only.difference.value)} {unit} ({signed_interval(only.difference)}{_censored(only)})."
        )
    other = "another it is held against" if facts.contrasted else facts.baseline
    return f"No arm can be said to reach {target} sooner or later than {other}."


def _than(facts: StudyFacts, effect: Effect) -> str:
    return "" if effect.other == facts.baseline else f" than {effect.other}"


def _censored(effect: Effect) -> str:
    arm, other = effect.censored
    if not arm and not other:
        return ""
    return f"; never reached by {arm} run{'s' * (arm != 1)} of {effect.arm} and {other} of {effect.other}"


def _p(effect: Effect) -> str:
    if np.isfinite(effect.p_holm):
        return f"p = {probability(effect.p_holm)} after Holm; "
    return f"p = {probability(effect.p)}; " if np.isfinite(effect.p) else ""


def probability(p: float) -> str:
    """Writes a p-value; a dash if there is none."""
    return "–" if not np.isfinite(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _seeds(effect: Effect) -> str:
    return f"{effect.seeds} paired seed{'s' * (effect.seeds != 1)}"


def _named(facts: StudyFacts, effects: Sequence[Effect]) -> str:
    shown = [f"{facts.named(each.arm, each.other)} {signed(each.difference.value)}" for each in effects[:NAMED]]
    return ", ".join(shown) + (f" and {len(effects) - NAMED} more" if len(effects) > NAMED else "")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _span(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"
