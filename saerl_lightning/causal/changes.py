"""Adds notes of unrelated words to questions, and tests whether mean changes differ from zero. Pure functions.

Words are chosen from a corpus by how strongly they activate a feature, never by their effect on the probe. Letters: n
questions, K kinds of edits, W words, F features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saerl_lightning.causal.sums import Question
from saerl_lightning.data.scores import Interval, bootstrap, spearman

WORD = re.compile(r"[A-Za-z]{3,}")
# Words of the note itself. They are never injected, because the injected word could not be found among them.
OWN_WORDS = {"note", "the", "words", "and", "not", "matter"}


def with_note(question: Question, words: Sequence[str]) -> Question:
    """Appends a sentence that names words and says that they do not matter."""
    listed = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
    return replace(question, text=f"{question.text} (Note: the words {listed} do not matter.)")


def common_words(texts: Iterable[str], count: int) -> list[str]:
    """Finds the most frequent words in lower case, without the note's own; ties keep the order of occurrence."""
    found = (word.lower() for text in texts for word in WORD.findall(text))
    counted = Counter(word for word in found if word not in OWN_WORDS)
    return [word for word, _ in counted.most_common(count)]


def tokens_of(pieces: Sequence[str], word: str) -> Int[np.ndarray, " t"]:
    """Finds the positions of a word's tokens at its last occurrence.

    Args:
        pieces: Text of every token, in order.
        word: Word of letters, or number; it must occur in the text.
    """
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    *_, found = re.finditer(rf"(?<!\w){word}(?!\w)", "".join(pieces))
    return np.flatnonzero((starts < found.end()) & (ends > found.start()))


def top_words(
    activations: csr_array, words: list[str], columns: Int[np.ndarray, " j"], count: int
) -> dict[int, list[str]]:
    """Finds the words that activate each feature most, strongest first; none for features that no word activates.

    Args:
        activations: Activation of each feature at each word, (W, F), not negative.
        words: The W words, in the order of the rows.
        columns: Indices of the features.
        count: Largest number of words for a feature.
    """
    rows: Any = activations
    chosen: dict[int, list[str]] = {}
    for column in columns.tolist():
        activation = np.ravel(rows[:, [column]].toarray())
        order = np.argsort(-activation, kind="stable")[:count]
        chosen[column] = [words[i] for i in order if activation[i] > 0]
    return chosen


def mean_change(changes: Float[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Mean change with its 95 % percentile interval by a bootstrap over questions.

    Args:
        changes: Change of each question.
        seed: Seed of the bootstrap.
    """
    return bootstrap({"mean": lambda counts: counts @ changes / counts.sum(axis=1)}, len(changes), seed)["mean"]


def change_agreement(
    predicted: dict[str, Float[np.ndarray, "K n"]], measured: Float[np.ndarray, "K n"], seed: int = 0
) -> dict[str, Interval]:
    """Computes Spearman's correlation of predicted and measured changes over all edits, with 95 % intervals.

    The bootstrap draws a question together with all its edits, because edits of one question are not independent.

    Args:
        predicted: Predicted changes by name of the probe; row k is edit k of every question.
        measured: Measured changes of difficulty.
        seed: Seed of the bootstrap.

    Returns:
        One score a probe; and for each probe except the first, under "first - other", the score of the difference.
    """
    # Correlations are stored, because each difference of two probes needs those of both.
    known: dict[tuple[str, bytes], Float[np.ndarray, " D"]] = {}

    def correlations(name: str, counts: Int[np.ndarray, "D n"]) -> Float[np.ndarray, " D"]:
        if (name, counts.tobytes()) not in known:
            drawn = [np.repeat(np.arange(len(row)), row) for row in counts]
            pairs = ((predicted[name][:, i].ravel(), measured[:, i].ravel()) for i in drawn)
            known[name, counts.tobytes()] = np.array([spearman(*pair) for pair in pairs])
        return known[name, counts.tobytes()]

    first, *others = predicted
    statistics = {name: lambda counts, n=name: correlations(n, counts) for name in predicted}
    for name in others:
        statistics[f"{first} - {name}"] = lambda counts, n=name: correlations(first, counts) - correlations(n, counts)
    return bootstrap(statistics, measured.shape[1], seed)
