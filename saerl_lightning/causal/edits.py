"""Causal test of edits: does the difficulty probe follow when sums are made harder, or changed without becoming harder?

The edits are in `sums`, the probes in `fitting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saerl_lightning.causal.changes import change_agreement
from saerl_lightning.causal.figures import dots
from saerl_lightning.causal.fitting import (
    SAE,
    Changes,
    Fitting,
    above_zero,
    below_zero,
    change_columns,
    interval,
    setting,
    several,
)
from saerl_lightning.causal.subject import MeasurementCache, Subject
from saerl_lightning.causal.sums import Question, Sum, bigger_numbers, one_more_term, other_numbers
from saerl_lightning.data.scores import Interval
from saerl_lightning.study.report.section import Section

PLEASE = "Please compute {}."


def edits(
    subject: Subject, fitting: Fitting, sums: Sequence[Sum], samples: int, seed: int, cache: MeasurementCache
) -> Section:
    """Edits sums so that difficulty changes or stays, and compares predicted with measured changes.

    Args:
        subject: Model that answers and whose activations are read.
        fitting: Fitted probes of difficulty.
        sums: The n sums that are edited.
        samples: Number of answers to each question.
        seed: Seed of the edits and the answers.
        cache: Cache of measured answers.
    """
    made = edited(sums, seed)
    base = [each.question() for each in sums]
    changes = Changes.of(subject, fitting, base, made, samples, seed, cache)
    scores = changes.scores(seed)
    together = change_agreement(changes.predicted, changes.measured, seed)
    rows = [[kind, *map(interval, scores[kind].values()), made[kind][0].text] for kind in changes.kinds]
    rows.append(["Spearman over all edits", *(interval(together[each.name]) for each in fitting.raters), "", ""])
    told = "; ".join(f"{name} {interval(score)}" for name, score in together.items())
    text = (
        f"{_follows(together)} Spearman between the change of d and the measured change over {changes.measured.size} edits "
        f"(bootstrap over sums): {told}.\n\n"
        f"{len(sums)} sums were edited in {len(made)} ways: one digit more in every number, one term more, and as controls "
        f"other numbers of equal size and other words. {setting(fitting, samples, seed)} Measured changes carry the noise of "
        f"{samples} answers, which holds every correlation down."
    )
    header = ["edit", *change_columns(fitting), "example"]
    return Section("Questions edited", text, header, rows, dots(scores, "change, in sd of the labels"))


def edited(sums: Sequence[Sum], seed: int) -> dict[str, list[Question]]:
    """Makes four edits of every sum: two that should make it harder, and two controls."""
    return {
        "bigger numbers": [bigger_numbers(each, seed).question() for each in sums],
        "one more term": [one_more_term(each, seed).question() for each in sums],
        "other numbers": [other_numbers(each, seed).question() for each in sums],
        "reworded": [each.question(PLEASE) for each in sums],
    }


def _follows(together: Mapping[str, Interval]) -> str:
    score = together[SAE]
    verdict = "follows" if above_zero(score) else "runs against" if below_zero(score) else "was not seen to follow"
    other = {name.removeprefix(f"{SAE} - "): each for name, each in together.items() if name.startswith(f"{SAE} - ")}
    ahead, behind = ([name for name, each in other.items() if side(each)] for side in (above_zero, below_zero))
    alike = [name for name in other if name not in (*ahead, *behind)]
    relations = {"ahead of": ahead, "behind": behind, "not told apart from": alike}
    placed = "; ".join(f"{relation} {several(names)}" for relation, names in relations.items() if names)
    return f"The SAE probe {verdict} the measured change ({placed})."
