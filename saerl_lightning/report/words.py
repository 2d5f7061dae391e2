"""Distinctive words of groups of texts. Counts only; it knows no model and no language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

WORD = r"\\?[^\W\d_]{3,}"  # a backslash before it makes it a LaTeX command: \frac is a word of mathematics
PRIOR = 500.0  # texts that the whole pool is worth beside a group
SURE = 1.96  # standard errors from "as frequent as elsewhere"
TEXTS = 20_000  # that words are counted in; more change no list


def distinctive_words(texts: Sequence[str], group: Int[np.ndarray, " N"], most: int = 8) -> dict[int, list[str]]:
    """Finds the words that stand in many texts of a group and in few of the others.

    Args:
        texts: N.
        group: of each text; negative ones are background only.
        most: words a group.

    Returns:
        By group, its words, the most distinctive first; none where no word is beyond chance.
    """
    rows = np.arange(len(texts))
    if len(texts) > TEXTS:
        rows = np.random.default_rng(0).permutation(len(texts))[:TEXTS]
    vocabulary, present = _present_words([texts[row] for row in rows.tolist()])
    found: dict[int, list[str]] = {int(number): [] for number in np.unique(group[group >= 0])}
    if not vocabulary:
        return found
    everywhere = np.asarray(present.sum(0)).ravel()
    for number, words in found.items():
        inside = np.asarray(present[np.flatnonzero(group[rows] == number)].sum(0)).ravel()
        scores = log_odds(inside, everywhere - inside)
        best = np.argsort(-scores, kind="stable")[:most]
        words += [vocabulary[word] for word in best if scores[word] > SURE]
    return found


def log_odds(inside: Float[np.ndarray, " W"], outside: Float[np.ndarray, " W"]) -> Float[np.ndarray, " W"]:
    """How many standard errors each word's log-odds inside lie above those outside.

    Args:
        inside: texts of the group with the word.
        outside: other texts with it.

    Source: log-odds with an informative Dirichlet prior, Monroe, Colaresi and Quinn 2008, eq. 16, 20 and 22, with
    numbers of texts for numbers of words (ours: a text that repeats a word is no better evidence).
    """
    prior = PRIOR * (inside + outside) / max((inside + outside).sum(), 1)
    scores = np.zeros(len(prior))
    for counts, sign in ((inside, 1), (outside, -1)):
        total = counts.sum() + prior.sum()
        scores = scores + sign * (np.log(counts + prior) - np.log(np.maximum(total - counts - prior, 1e-9)))
    return scores / np.sqrt(1 / (inside + prior) + 1 / (outside + prior))


def _present_words(texts: Sequence[str]) -> tuple[list[str], Any]:
    """Vocabulary, and which text has which word (N, W)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    common = sorted(word for word in ENGLISH_STOP_WORDS if len(word) > 2)
    counter = CountVectorizer(token_pattern=WORD, binary=True, stop_words=common, max_features=20_000)
    try:
        present = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's way of saying that there is no word
        return [], None
    return counter.get_feature_names_out().tolist(), present
