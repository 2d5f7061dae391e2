"""Report section of the steering test: text, table and figure from the measured answers. Nothing is generated here.

An effect is the pass rate with a change minus that without, question by question. All conditions use the same random
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from saerl_lightning.causal.answers import Answers, steering_figure
from saerl_lightning.plan_page.tables import interval, number
from saerl_lightning.study.report.section import Section
from saerl_lightning.study.statistics import Estimate, mean_estimate

COLUMNS = [
    "change",
    "share",
    "features",
    "pass rate",
    "less none",
    "95 %",
    "begin with a number",
    "probe's d moves, sd",
]
# Share of the unchanged model's right answers. If the controls fall below it, the pass rate can hardly become lower.
FLOOR = 0.25
# Share of the unchanged model's answers that begin with a number. Below it, the changed model is called broken.
SILENT = 0.5


def steering_section(answers: Sequence[Answers], samples: int, seed: int, norm: float, layer: int) -> Section:
    """Builds the section from the answers under all conditions.

    Args:
        answers: Answers under every condition, first those without a change.
        samples: Number of answers to each question and condition.
        seed: Seed of the answers and the controls.
        norm: Mean norm of the stream.
        layer: Index of the changed layer.
    """
    none, rest = answers[0], answers[1:]
    made_of = next(each.condition.features for each in rest if each.condition.kind == "probe")
    asked = (
        f"{len(none.right)} sums were asked {samples} times each (seed {seed}), with the same random numbers in every "
        f"condition. Without a change {_percent(none.right.mean())} of the answers are right and "
        f"{_percent(none.numbered.mean())} begin with a number. Behind layer {layer}, at every position but the first, a "
        f"share of the stream's mean norm ({number(norm)}) was added along the probe's direction, the weighted sum of its "
        f"top {made_of} features' decoder rows, or along controls of equal norm."
    )
    rises = [each for each in rest if each.condition.share > 0]
    falls = [each for each in rest if each.condition.share < 0]
    sentences = [_steered("Adding the direction", "lowers", rises, none)]
    if falls:
        sentences.append(_steered("Taking it away", "raises", falls, none))
    sentences += [_moved(rises, none), *_ablated(rest, none), *_broken(rest, none)]
    sentences.append(
        f"\n\n{asked} This is one model, one layer, one SAE, one probe and short sums. Intervals are over questions, given "
        f"these controls; a direction like any other comes first before {_controls(rises)} controls once in "
        f"{_controls(rises) + 1} times."
    )
    rows = [_row(none, none), *(_row(each, none) for each in rest)]
    return Section(
        "Steering along the probe's direction", " ".join(sentences), COLUMNS, rows, steering_figure(rest, none)
    )


def over_controls(answers: Sequence[Answers], none: Answers) -> tuple[Estimate, Estimate, list[float]]:
    """Compares the probe's direction with its controls, as a mean over the given shares.

    Args:
        answers: Answers under the probe's direction and under the controls, at equal shares.
        none: Answers without any change.

    Returns:
        The probe's effect on the pass rate; its difference from the controls' mean effect, paired by question; and the
        effect of each control.
    """
    own = [each.right - none.right for each in answers if each.condition.kind in ("probe", "top out")]
    names = dict.fromkeys(each.condition.name for each in answers if each.condition.kind not in ("probe", "top out"))
    others = {
        name: np.mean([each.right - none.right for each in answers if each.condition.name == name], axis=0)
        for name in names
    }  # (N,) each
    effect = np.mean(own, axis=0)  # (N,)
    beyond = effect - np.mean(list(others.values()), axis=0)
    single = [float(each.mean()) for each in others.values()]
    return mean_estimate(effect.tolist()), mean_estimate(beyond.tolist()), single


def _steered(doing: str, moves: Literal["lowers", "raises"], answers: Sequence[Answers], none: Answers) -> str:
    effect, beyond, controls = over_controls(answers, none)
    sign = -1 if moves == "lowers" else 1
    shares = sorted({abs(each.condition.share) for each in answers})
    as_far = sum(sign * each >= sign * effect.value for each in controls)
    told = (
        f"{doing} (mean over shares {', '.join(number(share) for share in shares)}) moves the pass rate by "
        f"{_points(effect)}, the controls by {_signed(np.mean(controls))} on average: difference {_points(beyond)}; "
        f"{as_far} of {len(controls)} controls {'lower' if sign < 0 else 'raise'} it as much or more."
    )
    near, far = sorted((sign * beyond.low, sign * beyond.high))
    if near > 0 and sign * effect.value > 0:
        verdict = f"So it {moves} the pass rate by more than the average control"
        verdict += ", and by more than each." if not as_far else ", though not by more than each."
    elif far < 0:
        verdict = (
            f"So it {moves} the pass rate by less than the average control, which a direction of difficulty would not."
        )
    else:
        verdict = f"So it is not shown that it {moves} the pass rate by more than any direction of this length does."
    return f"{told} {verdict}"


def _moved(answers: Sequence[Answers], none: Answers) -> str:
    """Says whether the direction changes the probe's own prediction in the intended way."""
    moves = {each.condition.name: [] for each in answers}
    for each in answers:
        moves[each.condition.name].append(float((each.rated - none.rated).mean()))
    own = float(np.mean([np.mean(moves[e.condition.name]) for e in answers if e.condition.kind == "probe"]))
    rest = [float(np.mean(moves[name])) for name in moves if name != _probe(answers)]
    told = f"Read from the stream with it added, the probe's own d moves by {_signed(own)} sd (controls {_range(rest)})"
    return told + (
        "." if own > max(rest) else ": no further up than under a control, so the test hardly tests the probe."
    )


def _ablated(answers: Sequence[Answers], none: Answers) -> list[str]:
    sentences = []
    for count in sorted({each.condition.features for each in answers if each.condition.kind == "top out"}):
        out = [e for e in answers if e.condition.kind in ("top out", "random out") and e.condition.features == count]
        effect, beyond, controls = over_controls(out, none)
        sentences.append(
            f"Without the probe's top {count} features the pass rate moves by {_points(effect)}, without {count} random "
            f"equally active ones by {_range(controls)}: difference {_points(beyond)}, {_zero(beyond)}."
        )
    return sentences


def _broken(answers: Sequence[Answers], none: Answers) -> list[str]:
    """Names changes after which the model hardly answers, and strengths at which controls leave few right answers."""
    sentences = []
    silent = [each.condition for each in answers if each.numbered.mean() < SILENT * none.numbered.mean()]
    if silent:
        names = ", ".join(f"{each.name} at {_signed(each.share)}" if each.share else each.name for each in silent)
        sentences.append(
            f"Under {len(silent)} changes the model is broken, fewer than half as many answers begin with a number: {names}."
        )
    low = [
        share
        for share in sorted({each.condition.share for each in answers if each.condition.share})
        if np.mean([e.right.mean() for e in answers if e.condition.share == share and e.condition.kind != "probe"])
        < FLOOR * none.right.mean()
    ]
    if low:
        sentences.append(
            f"At share {', '.join(number(share) for share in low)} the controls alone leave less than a quarter of the right "
            "answers, near the floor, where directions can hardly be told apart."
        )
    return sentences


def _row(each: Answers, none: Answers) -> list[str]:
    condition, effect = each.condition, mean_estimate((each.right - none.right).tolist())
    return [
        condition.name,
        _signed(condition.share) if condition.share else "–",
        str(condition.features) if condition.kind not in ("nothing", "direction") else "–",
        number(float(each.right.mean())),
        *(["–", "–"] if each is none else [_signed(effect.value), interval(effect.low, effect.high)]),
        _percent(each.numbered.mean()),
        "–" if each is none else _signed(float((each.rated - none.rated).mean())),
    ]


def _probe(answers: Sequence[Answers]) -> str:
    return next(each.condition.name for each in answers if each.condition.kind == "probe")


def _controls(answers: Sequence[Answers]) -> int:
    return len({each.condition.name for each in answers} - {_probe(answers)})


def _zero(estimate: Estimate) -> str:
    if not np.isfinite(estimate.low):
        return "without an interval, for no question differs from another"
    return "an interval that holds 0" if estimate.low <= 0 <= estimate.high else "an interval without 0"


def _points(estimate: Estimate) -> str:
    if not np.isfinite(estimate.low):
        return f"{_signed(estimate.value)} (the same for every question)"
    return f"{_signed(estimate.value)} (95 % {interval(estimate.low, estimate.high)})"


def _range(values: Sequence[float]) -> str:
    return f"{_signed(min(values))} to {_signed(max(values))}"


def _signed(value: float | np.floating) -> str:
    return ("+" if value > 0 else "") + number(float(value))


def _percent(value: float | np.floating) -> str:
    return f"{100 * value:.0f} %"
