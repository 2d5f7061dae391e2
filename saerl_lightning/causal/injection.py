"""Causal test of injection: does the difficulty probe respond to words that do not change a question's difficulty?

The notes are in `changes`, the probes in `fitting`. Letters: n questions, F features, W words.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array, vstack

from saerl_lightning.causal.changes import (
    common_words,
    mean_change,
    tokens_of,
    top_words,
    with_note,
)
from saerl_lightning.causal.edits import PLEASE
from saerl_lightning.causal.figures import dots
from saerl_lightning.causal.fitting import (
    MEASURED,
    SAE,
    Changes,
    Fitting,
    change_columns,
    excludes_zero,
    interval,
    setting,
    several,
)
from saerl_lightning.causal.subject import MeasurementCache, Subject, prompts
from saerl_lightning.causal.sums import Question, Sum
from saerl_lightning.data.features import equally_active, row_count, top_columns, without
from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.model import encode
from saerl_lightning.signals.pooling import maximum
from saerl_lightning.signals.reading import suited_forward
from saerl_lightning.signals.sae import sparse_codes
from saerl_lightning.study.report.section import Section

FEATURES, WORDS_A_FEATURE, NAMED = 8, 3, 3  # features of each sign, words for each feature, words in a note
CORPUS = 900  # number of words to choose from
# Numbers are injected too: features that a probe of sums uses are often activated by no other word.
NUMBERS = tuple(map(str, range(10, 100)))
RAISING, LOWERING, RANDOM = "features that raise d", "features that lower d", "random features"
ANY, ANY_NUMBERS = "random words", "random numbers"


def injection(
    subject: Subject,
    fitting: Fitting,
    sums: Sequence[Sum],
    corpus: Sequence[Prompt],
    samples: int,
    seed: int,
    cache: MeasurementCache,
) -> Section:
    """Adds notes with unrelated words to questions; compares the change of predicted and of measured difficulty.

    Args:
        subject: Model that answers and whose activations are read.
        fitting: Fitted probes of difficulty.
        sums: The n sums that get a note.
        corpus: Prompts whose most frequent words are used; if empty, words come from the tokenizer's vocabulary.
        samples: Number of answers to each question.
        seed: Seed of the words and the answers.
        cache: Cache of measured answers.

    Raises:
        InputError: if there are not enough words.
    """
    base = [each.question() for each in sums]
    words = [*_corpus_words(subject, corpus), *NUMBERS]
    activations = word_activations(subject, words)
    columns = feature_sets(fitting, activations, seed)
    lists = {name: _listed(top_words(activations, words, each, WORDS_A_FEATURE)) for name, each in columns.items()}
    lists |= {ANY: words[: -len(NUMBERS)], ANY_NUMBERS: list(NUMBERS)}
    edits = {name: _noted(base, listed, f"{seed} {name}") for name, listed in lists.items() if len(listed) >= NAMED}
    edits["reworded"] = [each.question(PLEASE) for each in sums]
    changes = Changes.of(subject, fitting, base, edits, samples, seed, cache)
    scores = changes.scores(seed)
    rows = [
        [kind, *map(interval, scores[kind].values()), _active(changes, k, columns.get(kind)), edits[kind][0].text]
        for k, kind in enumerate(changes.kinds)
    ]
    header = [
        "what was put in",
        *change_columns(fitting),
        "of the features aimed at, active before and after",
        "example",
    ]
    asked = f"{_told(fitting, activations, lists, len(base))} {setting(fitting, samples, seed)}"
    text = f"{_injection_result(changes, scores, seed)}\n\n{asked}"
    return Section("Words injected into questions", text, header, rows, dots(scores, "change, in sd of the labels"))


def _told(fitting: Fitting, activations: csr_array, lists: Mapping[str, Sequence[str]], sums: int) -> str:
    """Describes the injected words for the report."""
    dropped = [f"{name} ({len(listed)} words found)" for name, listed in lists.items() if len(listed) < NAMED]
    return (
        f"Into {sums} sums a note was put that names {NAMED} of the words or numbers that excite up to {FEATURES} features "
        f"most (of {row_count(activations)}, each read in such a note; the probe leans on {_leaning(fitting, activations)})"
        f"{', left out for want of words: ' + '; '.join(dropped) if dropped else ''}."
    )


def feature_sets(fitting: Fitting, activations: csr_array, seed: int) -> dict[str, Int[np.ndarray, " j"]]:
    """Selects features with the largest positive and negative weights, and random ones that are equally active.

    Only features that at least one word activates are used. The sets are empty if none of these has a weight.

    Args:
        fitting: Fitted probe and its feature rows.
        activations: Activation of each feature at each word, (W, F).
        seed: Seed of the random features.
    """
    excitable = np.unique(activations.indices)
    weights = np.zeros_like(fitting.sae.weights)
    weights[excitable] = fitting.sae.weights[excitable]
    rows = fitting.features
    raising = top_columns(np.maximum(weights, 0), rows, FEATURES)
    lowering = top_columns(np.minimum(weights, 0), rows, FEATURES)
    chosen = np.concatenate([raising, lowering])
    inert = np.setdiff1d(np.arange(len(weights)), excitable)
    matched = equally_active(chosen, without(rows, inert), seed)
    return {RAISING: raising, LOWERING: lowering, RANDOM: matched[: len(raising)]}


def word_activations(subject: Subject, words: Sequence[str]) -> csr_array:
    """Activation of each feature at each word inside a note, (W, F): the largest over the word's tokens."""
    word_groups = [words[start : start + NAMED] for start in range(0, len(words), NAMED)]
    asked = [with_note(Sum((7, 7), (1,)).question(), each) for each in word_groups]
    decoder, tokenizer = subject.read.load()
    ids = encode(prompts(asked), tokenizer)
    forward = suited_forward(decoder, max(map(len, ids)))
    read: dict[str, csr_array] = {}
    for batch in forward.batches(ids, subject.signal.token_budget):
        reading = forward([ids[i] for i in batch])
        codes = sparse_codes(subject.sae, reading.hidden)
        for i, path in zip(batch, reading.paths, strict=True):
            pieces = [str(tokenizer.decode([token])) for token in ids[i]]
            places = [path[tokens_of(pieces, word)] for word in word_groups[i]]
            found = maximum(codes, [np.concatenate([[0], each]) for each in places], subject.sae.cfg.d_sae)
            read |= {word: csr_array(found[[row]]) for row, word in enumerate(word_groups[i])}
    return csr_array(vstack([read[word] for word in words]))


def _corpus_words(subject: Subject, corpus: Sequence[Prompt]) -> list[str]:
    texts = [each.text for each in corpus]
    # Without prompts, words come from the tokenizer. A byte-pair vocabulary is ordered by frequency, and a leading space
    # marks the beginning of a word.
    if not texts:
        pieces: Any = (subject.tokenizer.decode([token]) for token in range(len(subject.tokenizer)))
        texts = [piece for piece in pieces if piece.startswith(" ") and piece[1:].isalpha() and piece.islower()]
    words = common_words(texts, CORPUS)
    if len(words) < NAMED:
        raise InputError(
            f"only {len(words)} words of three letters or more to inject; give prompts with words (--prompts)"
        )
    return words


def _listed(words: Mapping[int, list[str]]) -> list[str]:
    return list(dict.fromkeys(word for each in words.values() for word in each))


def _noted(base: Sequence[Question], words: Sequence[str], seed: str) -> list[Question]:
    return [with_note(each, random.Random(f"{seed} {i}").sample(list(words), NAMED)) for i, each in enumerate(base)]


def _active(changes: Changes, kind: int, columns: Int[np.ndarray, " j"] | None) -> str:
    """Mean number of target features that are active in a question, before and after the injection."""
    if columns is None:
        return ""
    n = changes.measured.shape[1]
    rows: Any = changes.features
    counts = np.diff(csr_array(rows[:, columns]).indptr)
    return f"{counts[:n].mean():.1f}, {counts[(kind + 1) * n : (kind + 2) * n].mean():.1f} of {len(columns)}"


def _injection_result(changes: Changes, scores: Mapping[str, Mapping[str, Interval]], seed: int) -> str:
    moved = [kind for kind in scores if excludes_zero(scores[kind][SAE])]
    still = [kind for kind in moved if not excludes_zero(scores[kind][MEASURED])]
    told = f"The SAE probe's d moved under {several(moved)}; " + (
        f"no change of difficulty was seen under {several(still)} of these, which is no proof that there was none."
        if still
        else "so did the measured difficulty under each of these."
    )
    told += " The fitting sums bear no notes, so that any is strange to the probes; what counts is one against another."
    d, at = changes.predicted[SAE], changes.kinds.index
    for control in (RANDOM, ANY, ANY_NUMBERS) if RAISING in changes.kinds else ():
        if control in changes.kinds:
            told += f" Words of {RAISING} against {control}: {interval(mean_change(d[at(RAISING)] - d[at(control)], seed))}."
    return told


def _leaning(fitting: Fitting, activations: csr_array) -> str:
    """Counts the features with a weight, and those among them that at least one word activates."""
    used = np.flatnonzero(fitting.sae.weights)
    return f"{len(used)} features, {len(np.intersect1d(used, activations.indices))} of which some word excites"
