"""What operations learn from and are checked against: labels of prompts, bins of equal difficulty, whole feature rows.

Reads prompts and names the bad ones; fits nothing. N prompts in the pool, M planned, n labelled. The labels of a prompt are
in `Prompt.labels`; where they come from is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from saerl_lightning.data.features import nonfinite_rows, row_count
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


def read_label(reader: str, label: str, prompts: Sequence[Prompt]) -> Float[np.ndarray, " N"]:
    """Reads one label of every prompt; NaN where a prompt lacks it.

    Args:
        reader: class that asks, for the message.
        label: name of the label, as in `Prompt.labels`.
        prompts: the pool, N prompts.

    Raises:
        InputError: if no prompt has the label.
    """
    values = np.array([prompt.labels.get(label, np.nan) for prompt in prompts], dtype=np.float64)
    if np.isnan(values).all():
        present = ", ".join(sorted({name for prompt in prompts for name in prompt.labels})) or "none"
        raise InputError(
            f"{reader}.label is {label!r}, but no prompt has it; labels present: {present}. Name one of them, write a file "
            "of labels to data.labels (`main.py label` measures difficulty), or empty the slot with null"
        )
    return values


def require_label(
    reader: str, label: str, prompts: Sequence[Prompt], rows: Int[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
    """Reads one label that every planned prompt must have; NaN where an unplanned one lacks it.

    Args:
        reader: class that asks, for the message.
        label: name of the label, as in `Prompt.labels`.
        prompts: the pool, N prompts.
        rows: planned rows, (M,).

    Raises:
        InputError: if a planned prompt lacks the label, with their count and the first one's uid.
    """
    values = read_label(reader, label, prompts)
    lacking = np.sort(rows[np.isnan(values[rows])])
    if len(lacking):
        raise InputError(
            f"{reader} needs {label!r} for every prompt, but {len(lacking)} of {len(rows)} planned prompts lack it (first: "
            f"'{prompts[int(lacking[0])].uid}'); label them all (main.py label --prompts {len(prompts)}), name the file in "
            "data.labels, or leave these prompts out of data.train"
        )
    return values


def sample_labelled(values: Float[np.ndarray, " N"], limit: int | None, seed: int) -> Int[np.ndarray, " n"]:
    """Positions of labelled prompts, in order: all, or a random sample of `limit`."""
    labelled = np.flatnonzero(np.isfinite(values))
    if limit is None or limit >= len(labelled):
        return labelled
    return np.sort(np.random.default_rng(seed).permutation(labelled)[:limit])


def families(prompts: Sequence[Prompt]) -> Int[np.ndarray, " N"]:
    """Groups prompts whose labels would give each other's away: copies of one prompt, and prompts of the same words.

    Returns:
        The position of the first prompt of each one's family, (N,).
    """
    place = {prompt.uid: row for row, prompt in enumerate(prompts)}
    origin = [place.get(prompt.copied_from, row) for row, prompt in enumerate(prompts)]
    words: dict[str, int] = {}
    same = [words.setdefault(prompt.normalised_text, row) for row, prompt in enumerate(prompts)]
    links = np.array([*enumerate(origin), *enumerate(same)]).reshape(-1, 2).T
    graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(len(prompts), len(prompts)))
    group = connected_components(graph, directed=False)[1]
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    return first[member]


def bin_by(values: Float[np.ndarray, " N"], rows: Int[np.ndarray, " M"], bins: int) -> Int[np.ndarray, " N"]:
    """Bins a label at the quantiles of the planned prompts; equal values share a bin, NaN is a bin of its own.

    Args:
        values: label of every prompt, (N,).
        rows: planned rows, (M,).
        bins: how many; fewer come out where many values are equal.

    Returns:
        The bin of every prompt, from 0; the highest number holds the prompts without a value.
    """
    known = values[rows][~np.isnan(values[rows])]
    edges = np.quantile(known, np.arange(1, bins) / bins) if len(known) else np.zeros(0)
    return np.where(np.isnan(values), bins, np.searchsorted(edges, values, side="left"))


def require_features(reader: str, prompts: Sequence[Prompt], features: Features | None) -> Features:
    """The feature rows, once every number in them is finite.

    Raises:
        InputError: if there are none, they are not one a prompt, or a row holds a NaN; names the prompts.
    """
    if features is None:
        raise InputError(f"{reader} reads feature rows, but there are none; name a signal source in data.signals")
    if row_count(features) != len(prompts):
        raise InputError(
            f"{reader} got {row_count(features)} feature rows for {len(prompts)} prompts; give one a prompt"
        )
    bad = nonfinite_rows(features)
    if len(bad):
        named = ", ".join(repr(prompts[row].uid) for row in bad[:3].tolist())
        raise InputError(
            f"{reader}: the feature rows of {len(bad)} prompts hold NaN or infinite numbers (first: {named}); mend or "
            "drop these prompts, or read the signal in float32"
        )
    return features


def lengths(prompts: Sequence[Prompt]) -> Float[np.ndarray, " N"]:
    """Characters of the user's words, of every prompt."""
    return np.fromiter((len(prompt.text) for prompt in prompts), dtype=np.float64, count=len(prompts))
