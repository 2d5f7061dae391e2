"""Cluster cards: each cluster of a plan described by numbers, features, words and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.plan_page.ledger import excerpt
from saerl_lightning.plan_page.planned import MadePlan

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


WORD = r"\\?[^\W\d_]{3,}"  # LaTeX commands such as \frac count as words
PRIOR = 500.0  # weight of the whole pool as prior, in texts; that of a smaller pool is its own size
SURE = 1.96  # smallest score of a listed word, in standard errors
TEXTS = 20_000  # largest number of texts whose words are counted; more hardly change the result


def distinctive_words(texts: Sequence[str], group: Int[np.ndarray, " N"], most: int = 8) -> dict[int, list[str]]:
    """Finds words that are frequent in a group's texts and rare in the others.

    Args:
        texts: Texts of the prompts (N).
        group: Group of each text, (N,). Texts with negative numbers are only background.
        most: Largest number of words per group.

    Returns:
        The words of each group, the most distinctive first. Words within chance are left out.
    """
    return {number: beyond_chance(scored) for number, scored in scored_words(texts, group, most).items()}


def beyond_chance(scored: Sequence[tuple[str, float]]) -> list[str]:
    """Returns the words whose scores are beyond chance."""
    return [word for word, score in scored if score > SURE]


def scored_words(
    texts: Sequence[str], group: Int[np.ndarray, " N"], most: int = 8
) -> dict[int, list[tuple[str, float]]]:
    """Scores the words that are more frequent in a group's texts than in the others, in standard errors.

    Args:
        texts: Texts of the prompts (N).
        group: Group of each text, (N,). Texts with negative numbers are only background.
        most: Largest number of words per group.

    Returns:
        The words of each group with their scores, the most distinctive first.
    """
    rows = np.arange(len(texts))
    if len(texts) > TEXTS:
        rows = np.random.default_rng(0).permutation(len(texts))[:TEXTS]
    vocabulary, present = _present_words([texts[row] for row in rows.tolist()])
    found: dict[int, list[tuple[str, float]]] = {int(number): [] for number in np.unique(group[group >= 0])}
    if not vocabulary:
        return found
    everywhere = np.asarray(present.sum(0)).ravel()
    for number, words in found.items():
        inside = np.asarray(present[np.flatnonzero(group[rows] == number)].sum(0)).ravel()
        scores = log_odds(inside, everywhere - inside, min(PRIOR, len(rows)))
        best = np.argsort(-scores, kind="stable")[:most]
        words += [(vocabulary[word], float(scores[word])) for word in best if inside[word] and scores[word] > 0]
    return found


def log_odds(
    inside: Float[np.ndarray, " W"], outside: Float[np.ndarray, " W"], weight: float = PRIOR
) -> Float[np.ndarray, " W"]:
    """Computes how many standard errors each word's log-odds inside the group lie above those outside.

    Args:
        inside: Number of texts with the word inside the group, (W,).
        outside: Number of texts with the word outside the group, (W,).
        weight: Weight of the prior, in texts.

    Source: log-odds with an informative Dirichlet prior, Monroe, Colaresi and Quinn 2008, eq. 16, 20 and 22, with
    counts of texts instead of counts of words (ours: a repeated word is no better evidence).
    """
    prior = weight * (inside + outside) / max((inside + outside).sum(), 1)
    scores = np.zeros(len(prior))
    for counts, sign in ((inside, 1), (outside, -1)):
        total = counts.sum() + prior.sum()
        scores = scores + sign * (np.log(counts + prior) - np.log(np.maximum(total - counts - prior, 1e-9)))
    return scores / np.sqrt(1 / (inside + prior) + 1 / (outside + prior))


def _present_words(texts: Sequence[str]) -> tuple[list[str], Any]:
    """Returns the vocabulary, and which text contains which word, (N, W)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    common = sorted(word for word in ENGLISH_STOP_WORDS if len(word) > 2)
    counter = CountVectorizer(token_pattern=WORD, binary=True, stop_words=common, max_features=20_000)
    try:
        present = counter.fit_transform(texts)
    except ValueError:  # scikit-learn raises this if there is no word
        return [], None
    return counter.get_feature_names_out().tolist(), present


ROUNDING = 1e-9  # tolerance of sums: a column with equal values everywhere has a lift of 1
COMMON = 0.2  # smallest share of members that must have a feature


@dataclass(frozen=True)
class FeatureEffect:
    """A feature that is stronger in a group than in the pool."""

    feature: str  # name or number of the column
    effect: float  # lift (mean in the group / mean in the pool), or for signed columns difference / standard deviation
    inside: float  # share of the group with the feature; NaN for signed columns
    everywhere: float  # share of the pool with the feature; NaN for signed columns


def strongest_features(
    features: Features, group: Int[np.ndarray, " N"], names: Sequence[str] | None = None, most: int = 6
) -> dict[int, list[FeatureEffect]]:
    """Finds the columns that exceed the pool most in each group.

    Columns without negative entries (SAE activations, TF-IDF) are ranked by lift, if at least a fifth of the group has
    them. Signed columns (hidden states, random numbers) are ranked by the difference of means in standard deviations.

    Args:
        features: Feature rows, (N, F).
        group: Group of each row, (N,). Rows with negative numbers belong only to the pool.
        names: Names of the columns; null shows their numbers.
        most: Largest number of features per group.

    Returns:
        The features of each group, the strongest first.
    """
    import scipy.sparse as sparse

    numbers, sizes = np.unique(group[group >= 0], return_counts=True)
    rows = np.flatnonzero(group >= 0)
    place = np.searchsorted(numbers, group[rows])
    picks = sparse.csr_array((np.ones(len(rows)), (place, rows)), shape=(len(numbers), len(group)))
    matrix = sparse.csr_array(features) if not isinstance(features, np.ndarray) else features
    rank = _by_difference if (matrix.min() < 0) else _by_lift
    return {int(number): rank(matrix, picks[[k]], sizes[k], names, most) for k, number in enumerate(numbers)}


def _by_lift(features: Any, pick: Any, size: int, names: Sequence[str] | None, most: int) -> list[FeatureEffect]:
    has = features != 0  # (N, F) booleans, sparse if the rows are sparse
    inside, everywhere = _row(pick @ has.astype(np.float64)) / size, _row(has.mean(0))
    pool = _row(features.mean(0))
    lift = _row(pick @ features) / size / np.where(pool > 0, pool, np.inf)
    score = np.where(inside >= COMMON, lift, 0.0)
    best = np.argsort(-score, kind="stable")[:most]
    return [
        FeatureEffect(_name(names, f), float(lift[f]), float(inside[f]), float(everywhere[f]))
        for f in best
        if score[f] > 1 + ROUNDING
    ]


def _by_difference(features: Any, pick: Any, size: int, names: Sequence[str] | None, most: int) -> list[FeatureEffect]:
    pool = _row(features.mean(0))
    spread = np.sqrt(np.maximum(_row((features * features).mean(0)) - pool**2, 0))
    effect = (_row(pick @ features) / size - pool) / np.where(spread > 0, spread, np.inf)
    best = np.argsort(-effect, kind="stable")[:most]
    return [FeatureEffect(_name(names, f), float(effect[f]), np.nan, np.nan) for f in best if effect[f] > ROUNDING]


def nearest_to_centre(features: Features, members: Int[np.ndarray, " n"], most: int = 3) -> Int[np.ndarray, " m"]:
    """Returns the members whose rows are closest, by cosine, to the group's mean unit row, nearest first."""
    from sklearn.preprocessing import normalize

    rows: Any = normalize(features[members])
    closeness = _row(rows @ _row(rows.mean(0)))  # (n,)
    return members[np.argsort(-closeness, kind="stable")[:most]]


def _row(matrix: Any) -> Float[np.ndarray, " X"]:
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    return dense.ravel()


def _name(names: Sequence[str] | None, column: int) -> str:
    return str(names[column]) if names is not None else f"#{column}"


LARGEST = 48  # largest number of clusters with a card
EXAMPLE = 200  # largest number of characters of an example
SAMPLE = 20_000  # largest number of prompts whose features are compared; more hardly change the result


@dataclass(frozen=True)
class Example:
    """A typical prompt of a cluster."""

    uid: str
    topic: str
    difficulty: float
    text: str


@dataclass(frozen=True)
class Card:
    """The description of one cluster. Sizes and ratings count planned prompts."""

    number: int
    size: int
    served: int
    topics: list[tuple[str, int]]  # most frequent first; "" for prompts without a topic
    difficulty: tuple[float, float, float]  # mean, lowest and highest rating; NaN without ratings
    features: list[FeatureEffect]
    words: list[str]
    examples: list[Example]
    nearest: list[str] = field(default_factory=list)  # words that set it apart most, also those within chance

    @property
    def title(self) -> str:
        """The cluster's number, and its two most distinctive words, or its most frequent topic if there are none."""
        named = self.words[:2] or self.nearest[:2] or [topic for topic, _ in self.topics[:1]]
        return f"{self.number} {', '.join(named)}".strip()


def make_cards(run: MadePlan) -> list[Card]:
    """Describes the clusters, the largest first; returns [] without clusters.

    Without feature rows, cards list no features, and the examples have medium difficulty.
    """
    ledger = run.ledger
    group = np.where(ledger.planned, ledger.cluster, -1)
    sizes = Counter(group[group >= 0].tolist())
    shown = [number for number, _ in sizes.most_common(LARGEST)]
    if not shown:
        return []
    words = scored_words([prompt.text for prompt in run.prompts], group)
    features = _features(run, np.where(np.isin(group, shown), group, -1))
    return [_card(run, number, np.flatnonzero(group == number), words[number], features) for number in shown]


def _features(run: MadePlan, group: Int[np.ndarray, " N"]) -> dict[int, list[FeatureEffect]]:
    if run.features is None:
        return {}
    rows = np.arange(len(group))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).permutation(len(group))[:SAMPLE])
    return strongest_features(run.features[rows], group[rows], run.feature_names)


def _card(
    run: MadePlan,
    number: int,
    members: Int[np.ndarray, " n"],
    words: list[tuple[str, float]],
    features: dict[int, list[FeatureEffect]],
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
        beyond_chance(words),
        [_example(run, int(row)) for row in _typical(run, members)],
        [word for word, _ in words],
    )


def _typical(run: MadePlan, members: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    if run.features is not None:
        return nearest_to_centre(run.features, members)
    ordered = members[np.argsort(run.ledger.difficulty[members], kind="stable")]
    middle = max(0, len(ordered) // 2 - 1)
    return ordered[middle : middle + 3]


def _example(run: MadePlan, row: int) -> Example:
    prompt = run.prompts[row]
    return Example(prompt.uid, prompt.topic or "", float(run.ledger.difficulty[row]), excerpt(prompt.text, EXAMPLE))
