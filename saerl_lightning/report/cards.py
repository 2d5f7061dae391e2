"""Cluster cards: what each cluster is made of, in numbers, features, words and examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from saerl_lightning.report.ledger import excerpt
from saerl_lightning.report.planned import PlannedRun
from saerl_lightning.report.strengths import Strength, nearest_to_centre, strongest_features
from saerl_lightning.report.words import distinctive_words

LARGEST = 48  # clusters that get a card
EXAMPLE = 200  # characters of an example
SAMPLE = 20_000  # prompts that features are weighed on; more change little


@dataclass(frozen=True)
class Example:
    """A prompt that stands for its cluster."""

    uid: str
    topic: str
    difficulty: float
    text: str


@dataclass(frozen=True)
class Card:
    """One cluster, described. Sizes and ratings are over planned prompts."""

    number: int
    size: int
    served: int
    topics: list[tuple[str, int]]  # most frequent first; "" is no topic
    difficulty: tuple[float, float, float]  # mean, lowest and highest; NaN without ratings
    features: list[Strength]
    words: list[str]
    examples: list[Example]

    @property
    def title(self) -> str:
        """Its number and the two words that tell most."""
        return f"{self.number} {', '.join(self.words[:2])}".strip()


def make_cards(run: PlannedRun) -> list[Card]:
    """Describes the clusters, the largest first; none where nothing clustered.

    Without feature rows there are no strongest features, and the examples are the middle ones by difficulty.
    """
    ledger = run.ledger
    group = np.where(ledger.planned, ledger.cluster, -1)
    sizes = Counter(group[group >= 0].tolist())
    shown = [number for number, _ in sizes.most_common(LARGEST)]
    if not shown:
        return []
    words = distinctive_words([prompt.text for prompt in run.prompts], group)
    features = _features(run, np.where(np.isin(group, shown), group, -1))
    return [_card(run, number, np.flatnonzero(group == number), words[number], features) for number in shown]


def _features(run: PlannedRun, group: Int[np.ndarray, " N"]) -> dict[int, list[Strength]]:
    if run.features is None:
        return {}
    rows = np.arange(len(group))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).permutation(len(group))[:SAMPLE])
    return strongest_features(run.features[rows], group[rows], run.feature_names)


def _card(
    run: PlannedRun,
    number: int,
    members: Int[np.ndarray, " n"],
    words: list[str],
    features: dict[int, list[Strength]],
) -> Card:
    ledger, ratings = run.ledger, run.ledger.difficulty[members]
    rated = ratings[np.isfinite(ratings)]
    spread = (rated.mean(), rated.min(), rated.max()) if len(rated) else (np.nan,) * 3
    return Card(
        number,
        len(members),
        int(ledger.served[members].sum()),
        Counter(ledger.topic[members].tolist()).most_common(),
        (float(spread[0]), float(spread[1]), float(spread[2])),
        features.get(number, []),
        words,
        [_example(run, int(row)) for row in _typical(run, members)],
    )


def _typical(run: PlannedRun, members: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    if run.features is not None:
        return nearest_to_centre(run.features, members)
    ordered = members[np.argsort(run.ledger.difficulty[members], kind="stable")]
    middle = max(0, len(ordered) // 2 - 1)
    return ordered[middle : middle + 3]


def _example(run: PlannedRun, row: int) -> Example:
    prompt = run.prompts[row]
    return Example(prompt.uid, prompt.topic or "", float(run.ledger.difficulty[row]), excerpt(prompt.text, EXAMPLE))
