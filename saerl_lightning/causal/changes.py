"""Words put into a question that they have nothing to do with, and how far a mean change is from nothing. Pure.

The words come from a corpus and are chosen by what they do to a feature, never by what they do to the probe. n questions,
K kinds of edits, W words, F features.
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
from saerl_lightning.data.scores import Score, bootstrap, spearman

WORD = re.compile(r"[A-Za-z]{3,}")
OWN_WORDS = {"note", "the", "words", "and", "not", "matter"}  # of the note: named in it, they could not be told apart


def with_note(question: Question, words: Sequence[str]) -> Question:
    """The question with a sentence behind it that names words and says that they don't matter."""
    listed = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
    return replace(question, text=f"{question.text} (Note: the words {listed} do not matter.)")


def common_words(texts: Iterable[str], count: int) -> list[str]:
    """The words that occur most often, in small letters, but the note's own; of equally frequent ones the first."""
    found = (word.lower() for text in texts for word in WORD.findall(text))
    counted = Counter(word for word in found if word not in OWN_WORDS)
    return [word for word, _ in counted.most_common(count)]


def tokens_of(pieces: Sequence[str], word: str) -> Int[np.ndarray, " t"]:
    """Positions of the tokens that a word is written with, where it occurs last.

    Args:
        pieces: the text of every token, in order.
        word: of letters, or a number; it must occur.
    """
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    *_, found = re.finditer(rf"(?<!\w){word}(?!\w)", "".join(pieces))
    return np.flatnonzero((starts < found.end()) & (ends > found.start()))


def top_words(
    strengths: csr_array, words: list[str], columns: Int[np.ndarray, " j"], count: int
) -> dict[int, list[str]]:
    """The words that excite each feature most, strongest first; a feature that none excites has none.

    Args:
        strengths: what each feature is at each word, (W, F), not negative.
        words: W words.
        columns: features asked for.
        count: words a feature, at most.
    """
    rows: Any = strengths
    chosen: dict[int, list[str]] = {}
    for column in columns.tolist():
        strength = np.ravel(rows[:, [column]].toarray())
        order = np.argsort(-strength, kind="stable")[:count]
        chosen[column] = [words[i] for i in order if strength[i] > 0]
    return chosen


def mean_change(changes: Float[np.ndarray, " n"], seed: int = 0) -> Score:
    """Mean change with the 95 % percentile interval of its bootstrap over questions.

    Args:
        changes: one a question.
        seed: of the bootstrap.
    """
    return bootstrap({"mean": lambda counts: counts @ changes / counts.sum(axis=1)}, len(changes), seed)["mean"]


def change_agreement(
    predicted: dict[str, Float[np.ndarray, "K n"]], measured: Float[np.ndarray, "K n"], seed: int = 0
) -> dict[str, Score]:
    """Spearman's correlation of predicted with measured changes over all edits, with 95 % intervals.

    The bootstrap draws questions together with all their edits, which are no independent observations.

    Args:
        predicted: by name of the probe; row k is edit k of every question.
        measured: the true changes.
        seed: of the bootstrap.

    Returns:
        A score a probe, and for every probe but the first one, under "first - other", of the difference between them.
    """
    known: dict[tuple[str, bytes], Float[np.ndarray, " D"]] = {}  # a difference needs what both its sides have computed

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
