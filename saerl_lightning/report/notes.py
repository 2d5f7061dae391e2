"""What a plan says in sentences: the headline, and the meaning of the operations' numbers."""

from __future__ import annotations

import numpy as np

from saerl_lightning.report.ledger import Ledger
from saerl_lightning.report.numbers import count, number, share
from saerl_lightning.report.planned import PlannedRun

MEANINGS = {  # of the operations' numbers; an operation of one's own may report others, which stand without a note
    "kept": "prompts the filter leaves in the plan",
    "dropped": "prompts the filter takes out",
    "threshold": "rating below which a prompt is dropped",
    "probe/r2": "share of the label's variance predicted on prompts the probe did not learn from; 0 is guessing the mean",
    "probe/pearson": "linear correlation of prediction and label, cross-validated",
    "probe/spearman": "correlation of the two orders, cross-validated: what matters for a curriculum",
    "probe/auc": "chance that the probe rates a good prompt above a bad one; 0.5 is a coin",
    "probe/labels": "labelled prompts the probe learned from",
    "probe/nonzero": "features the probe uses",
    "clusters": "how many clusters",
    "size_min": "prompts of the smallest cluster",
    "size_median": "prompts of the middle cluster",
    "size_max": "prompts of the largest cluster",
    "nmi": "agreement with the data's topics, 0 to 1 (normalised mutual information)",
    "ami": "the same, corrected for chance: random clusters have 0",
    "ari": "agreement with topics by pairs of prompts, corrected for chance",
    "spearman_length": "correlation of the rating with prompt length; near 1, length alone would order alike",
    "share": "share of the served prompts that mixing moved to another batch",
}
SLOT_NOTES = {
    "signals": "No signal source, so there are no feature rows: no map and no strongest features.",
    "filtering": "No filter: only prompts that can't be served are left out.",
    "clustering": "No clusters: batches are cut from one stream, and there are no cluster cards.",
    "curriculum": "No curriculum: nothing rates difficulty, and prompts keep the shuffled order.",
    "mixing": "No mixing: batches stay as they were laid.",
}


def headline(run: PlannedRun) -> list[str]:
    """The plan in sentences, those about slots that are off left out."""
    ledger = run.ledger
    said = [_served(ledger), _clusters(ledger), _difficulty(ledger), _mixing(ledger)]
    return [sentence for sentence in said if sentence]


def absences(run: PlannedRun) -> list[tuple[str, str]]:
    """Slots without effect on the plan or on the page, and why."""
    missing = [(each.slot, f"{each.name} is on, but does nothing: {each.idle}.") for each in run.idle()]
    missing += [(slot, SLOT_NOTES[slot]) for slot in run.off()]
    if run.signal and run.features is None:
        note = f"{run.signal} is configured, but no operation reads its rows: no map and no strongest features."
        missing.insert(0, ("signals", note))
    if (filtering := run.operation("filtering")) and not np.isfinite(run.ledger.quality).any():
        missing.append(("filtering", f"{filtering.name} rates no quality, so there is no histogram of it."))
    return missing


def _served(ledger: Ledger) -> str:
    pool, dropped, left = len(ledger), int((ledger.fate == "dropped").sum()), int((ledger.fate == "not served").sum())
    lost = f"{count(dropped)} ({share(dropped, pool)}) {_are(dropped)} dropped" if dropped else "none is dropped"
    if left:
        lost += f" and {count(left)} {'fills' if left == 1 else 'fill'} no whole batch"
    served = f"{count(ledger.served.sum())} {_are(ledger.served.sum())} served"
    return (
        f"Of {count(pool)} prompts, {lost}; {served}, in {count(ledger.batches)} steps of {ledger.batch_size} prompts."
    )


def _clusters(ledger: Ledger) -> str:
    sizes = np.unique(ledger.cluster[ledger.planned & (ledger.cluster >= 0)], return_counts=True)[1]
    if not len(sizes):
        return ""
    if len(sizes) == 1:
        return f"One cluster holds all {count(sizes[0])}."
    return f"{count(len(sizes))} clusters hold between {count(sizes.min())} and {count(sizes.max())} prompts each."


def _difficulty(ledger: Ledger) -> str:
    rated = ledger.served & np.isfinite(ledger.difficulty)
    if not rated.any():
        return ""
    tenth = max(1, ledger.batches // 10)
    first = ledger.difficulty[rated & (ledger.batch < tenth)]
    last = ledger.difficulty[rated & (ledger.batch >= ledger.batches - tenth)]
    if not len(first) or not len(last):
        return ""
    return (
        f"The first tenth of training is rated {number(first.mean())} on average, the last tenth {number(last.mean())}."
    )


def _mixing(ledger: Ledger) -> str:
    moved = (ledger.mixed_from[ledger.served] >= 0).sum()
    return f"Mixing moved {share(moved, ledger.served.sum())} of the served prompts to another step." if moved else ""


def _are(things: int) -> str:
    return "is" if things == 1 else "are"
