"""What `drift.py` found, as sections of a report: a title, words, a table, a figure; all computed from the findings.

Intervals are 95 % percentile intervals of a bootstrap over prompts; those of differences draw the same prompts for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from drift_form import figure, score, shown
from drift_run import Measured
from signal_measures import mean, rank_agreement
from signal_tables import TABLES, cell
from signal_tasks import Finding

from saerl_lightning.data.scores import Interval, Statistic, agreement, bootstrap
from saerl_lightning.study.report.section import Section

FRESH, OLD_ROWS, OLD_PROBE = "difficulty elastic net", "old probe, old features", "old probe"
SUBJECT = "SAE"


@dataclass(frozen=True)
class Step:
    """What is known of one checkpoint: n prompts."""

    step: int
    measured: Measured  # (n,)
    found: Mapping[str, Mapping[str, Finding]]  # by signal, by task
    explained: Interval  # variance of the activations, by the SAE of step 0


def sections(steps: Sequence[Step], about: str) -> dict[str, Section]:
    """The three sections, by the end of their files' names.

    Args:
        steps: ascending, the first is step 0.
        about: which run, SAE and sample, in one sentence.
    """
    return {
        "1-labels": labels_section(steps, about),
        "2-signals": signals_section(steps, about),
        "3-old-probe": old_probe_section(steps, about),
    }


# -- labels -----------------------------------------------------------------------------------------------------------


def labels_section(steps: Sequence[Step], about: str) -> Section:
    """How far difficulty itself moved, beside how well it was measured; and what the SAE still explains."""
    first, rows = steps[0].measured, []
    for each in steps:
        now, later = each.measured, each is not steps[0]
        rates = bootstrap({"rate": mean(1 - now.difficulty / 100)}, len(now.difficulty))["rate"]
        half = agreement(now.first, now.second)["spearman"]
        rows.append(
            [
                str(each.step),
                shown(rates),
                f"{np.mean(now.difficulty == 100):.3f}",
                f"{np.mean(now.difficulty == 0):.3f}",
                shown(half),
                f"{np.sqrt(whole(half.value)):.3f}",
                shown(agreement(now.difficulty, first.difficulty)["spearman"]) if later else "–",
                f"{np.sqrt(whole(half_of(first)) * whole(half_of(now))):.3f}" if later else "–",
                shown(corrected(first, now)) if later else "–",
                shown(each.explained),
            ]
        )
    columns = [
        "step",
        "mean pass rate",
        "never solved",
        "always solved",
        "split halves, Spearman",
        "ceiling of a signal",
        "Spearman with step 0",
        "its ceiling",
        "corrected for noise",
        "variance explained by the SAE",
    ]
    lines = {
        "difficulty with that of step 0": [
            (each.step, agreement(each.measured.difficulty, first.difficulty)["spearman"]) for each in steps[1:]
        ],
        "split halves": [
            (each.step, agreement(each.measured.first, each.measured.second)["spearman"]) for each in steps
        ],
        "variance explained by the SAE": [(each.step, each.explained) for each in steps],
    }
    text = f"{labels_text(steps)}\n\n{about}"
    return Section("Drift: the labels and the activations", text, columns, rows, figure(lines, "correlation, share"))


def labels_text(steps: Sequence[Step]) -> str:
    """What became of difficulty and of the SAE between the first and the last step."""
    first, last, step = steps[0], steps[-1], steps[-1].step
    change = (first.measured.difficulty.mean() - last.measured.difficulty.mean()) / 100
    told = agreement(last.measured.difficulty, first.measured.difficulty)["spearman"]
    moved = corrected(first.measured, last.measured)
    judged = "its interval leaves out 1, so" if moved.high < 1 else "its interval reaches 1, so it stays open whether"
    return (
        f"From step 0 to {step} the mean pass rate changed by {change:+.3f}. The difficulty of step {step} has a Spearman "
        f"correlation of {shown(told)} with that of step 0. Two measurements of one unchanged difficulty would agree up to "
        "the ceiling beside it, which is computed from the split halves of the answers (stepped up to all answers by "
        f"Spearman and Brown's formula, an approximation for ranks). Divided by the ceiling it is {shown(moved)}: {judged} "
        "the order of the prompts changed by more than the noise of the labels. The SAE, trained before, explains "
        f"{shown(first.explained)} of the variance of the activations at step 0 and {shown(last.explained)} at step {step}."
    )


def whole(half: float) -> float:
    """Reliability of labels whose two halves correlate so (Spearman and Brown); 0 where the halves do not agree."""
    return max(2 * half / (1 + half), 0.0) if half > -1 else 0.0


def half_of(measured: Measured) -> float:
    """Spearman's correlation of the halves."""
    return agreement(measured.first, measured.second)["spearman"].value


def corrected(first: Measured, now: Measured) -> Interval:
    """Spearman's correlation of two measurements over the square root of their reliabilities' product."""
    between = rank_agreement(now.difficulty, first.difficulty)
    halves = [rank_agreement(each.first, each.second) for each in (first, now)]

    def statistic(counts: np.ndarray) -> np.ndarray:
        trusted = np.prod([[whole(float(half)) for half in each(counts)] for each in halves], axis=0)
        return np.divide(between(counts), np.sqrt(trusted), out=np.full(len(counts), np.nan), where=trusted > 0)

    return bootstrap({"corrected": statistic}, len(now.difficulty))["corrected"]


# -- signals ----------------------------------------------------------------------------------------------------------


def signals_section(steps: Sequence[Step], about: str) -> Section:
    """The table of `signals.py` at every step: features, labels and probes of that step."""
    heads = {task: TABLES[task][1] for task in (FRESH, "topic")}
    rows = [
        [
            str(each.step),
            signal,
            *(cell(found[task].numbers, key) if task in found else "–" for task in heads for key in heads[task]),
        ]
        for each in steps
        for signal, found in each.found.items()
    ]
    names = {"accuracy": "topic accuracy"}
    columns = ["step", "signal", *(names.get(key, head) for task in heads for key, head in heads[task].items())]
    lines = {signal: [(each.step, score(each.found[signal][FRESH])) for each in steps] for signal in steps[0].found}
    lines[f"{SUBJECT}, probe of step 0"] = [(each.step, score(each.found[SUBJECT][OLD_PROBE])) for each in steps]
    said = [
        f"{signal} {score(steps[0].found[signal][FRESH]).value:.3f} at step 0 and "
        f"{score(steps[-1].found[signal][FRESH]).value:.3f} at step {steps[-1].step}"
        for signal in steps[0].found
    ]
    ceiling = [np.sqrt(whole(half_of(each.measured))) for each in (steps[0], steps[-1])]
    text = (
        f"Spearman with the difficulty of the same step: {'; '.join(said)}. The noise of the labels lets no signal reach "
        f"more than about {ceiling[0]:.3f} at step 0 and {ceiling[1]:.3f} at step {steps[-1].step}.\n\n"
        f"{about} A probe (elastic net) is fitted anew at each step, to features read with the weights of that step and to "
        "difficulty measured then; 5-fold. Partial correlations: given characters, given six measures of length, and given "
        "those and the topic. TF-IDF's vocabulary was found on all prompts, without labels."
    )
    return Section(
        "Drift: what signals know, step by step", text, columns, rows, figure(lines, "Spearman with difficulty")
    )


# -- the old probe ----------------------------------------------------------------------------------------------------


def old_probe_section(steps: Sequence[Step], about: str) -> Section:
    """The probe of step 0, held against the labels of every step, on the features of then and of now."""
    rows = [
        [
            str(each.step),
            signal,
            *(shown(score(found[task])) for task in (FRESH, OLD_ROWS, OLD_PROBE)),
            shown(difference(each, signal, OLD_PROBE, OLD_ROWS)),
            shown(difference(each, signal, OLD_PROBE, FRESH)),
            cell(found[OLD_PROBE].numbers, "r2"),
        ]
        for each in steps
        for signal, found in each.found.items()
    ]
    columns = [
        "step",
        "signal",
        "fitted anew",
        "old probe, features of step 0",
        "old probe, features of now",
        "features of now - of step 0",
        "old probe - fitted anew",
        "R² of the old probe, features of now",
    ]
    lines: dict[str, list[tuple[int, Interval]]] = {}
    for task, name in ((FRESH, "fitted anew"), (OLD_ROWS, "old probe, old features"), (OLD_PROBE, "old probe")):
        for signal in (signal for signal in (SUBJECT, "hidden") if signal in steps[0].found):
            lines[f"{signal}, {name}"] = [(each.step, score(each.found[signal][task])) for each in steps]
    verdicts = " ".join(verdict(steps[-1], signal) for signal in (SUBJECT, "hidden") if signal in steps[0].found)
    text = (
        f"{verdicts}\n\n"
        f"{about} The probe (elastic net) is fitted once, to features and difficulty of step 0, and then held against the "
        "difficulty of each step; every prompt is predicted by a fit that never saw it. Numbers are Spearman "
        "correlations. With the features of step 0 only the difficulty has moved, as it has for a plan that is made before "
        "training; with the features of now the model has moved too."
    )
    return Section(
        "Drift: the probe of step 0, later on", text, columns, rows, figure(lines, "Spearman with difficulty")
    )


def difference(step: Step, signal: str, one: str, other: str) -> Interval:
    """Spearman of one finding less that of another, on the same draws of prompts."""
    found = step.found[signal]
    a, b = (_spearman(step, found[task]) for task in (one, other))
    return bootstrap({"difference": lambda counts: a(counts) - b(counts)}, len(step.measured.difficulty))["difference"]


def verdict(step: Step, signal: str) -> str:
    """What became of a signal's old probe at a step, in words."""
    anew, moved = difference(step, signal, OLD_PROBE, FRESH), difference(step, signal, OLD_PROBE, OLD_ROWS)
    reached = shown(score(step.found[signal][OLD_PROBE]))
    return (
        f"{signal}, step {step.step}: the old probe has {reached} on the features of now. "
        f"That is {_compared(moved)} what it has on those of step 0 (difference {shown(moved, '+.3f')}), and "
        f"{_compared(anew)} what a probe fitted anew has ({shown(anew, '+.3f')})."
    )


def _compared(change: Interval) -> str:
    return "less than" if change.high < 0 else "more than" if change.low > 0 else "not told apart from"


def _spearman(step: Step, finding: Finding) -> Statistic:
    return rank_agreement(step.measured.difficulty, finding.predictions)
