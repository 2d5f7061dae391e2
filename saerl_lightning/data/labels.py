"""Labels and feature rows that operations read: checks, bins of equal difficulty, and families of duplicates.

N prompts in the pool, M planned, n labelled. The labels of a prompt are in `Prompt.labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from saerl_lightning.data.features import nonfinite_rows, row_count
from saerl_lightning.errors import InputError, program
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


def read_label(reader: str, label: str, prompts: Sequence[Prompt], argument: str = "label") -> Float[np.ndarray, " N"]:
    """Reads one label of every prompt; NaN for prompts without it.

    Args:
        reader: Name of the class that reads the label, for messages.
        label: Name of the label, as in `Prompt.labels`.
        prompts: Prompts of the pool (N).
        argument: Name of the class's argument that names the label, for messages.

    Raises:
        InputError: if no prompt has the label.
    """
    values = np.array([prompt.labels.get(label, np.nan) for prompt in prompts], dtype=np.float64)
    if np.isnan(values).all():
        present = ", ".join(sorted({name for prompt in prompts for name in prompt.labels})) or "none"
        raise InputError(
            f"{reader}.{argument} is {label!r}, but no prompt has it; labels present: {present}. Name one of them, write a "
            f"file of labels to data.labels (`{program()} label` measures difficulty), or empty the slot with null"
        )
    return values


def require_label(
    reader: str, label: str, prompts: Sequence[Prompt], rows: Int[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
    """Reads one label that every planned prompt must have; NaN for unplanned prompts without it.

    Args:
        reader: Name of the class that reads the label, for messages.
        label: Name of the label, as in `Prompt.labels`.
        prompts: Prompts of the pool (N).
        rows: Planned rows, (M,).

    Raises:
        InputError: if planned prompts do not have the label; the message gives their number and the first uid.
    """
    values = read_label(reader, label, prompts)
    lacking = np.sort(rows[np.isnan(values[rows])])
    if len(lacking):
        raise InputError(
            f"{reader} needs {label!r} for every prompt, but {len(lacking)} of {len(rows)} planned prompts lack it (first: "
            f"'{prompts[int(lacking[0])].uid}'); label them all ({program()} label --prompts {len(prompts)}), name "
            "the file in data.labels, or leave these prompts out of data.train"
        )
    return values


def sample_labelled(values: Float[np.ndarray, " N"], limit: int | None, seed: int) -> Int[np.ndarray, " n"]:
    """Returns the positions of all labelled prompts, or of a random sample of `limit`, in order."""
    labelled = np.flatnonzero(np.isfinite(values))
    if limit is None or limit >= len(labelled):
        return labelled
    return np.sort(np.random.default_rng(seed).permutation(labelled)[:limit])


def families(prompts: Sequence[Prompt]) -> Int[np.ndarray, " N"]:
    """Groups prompts whose labels would reveal each other's: copies of one prompt, and prompts with equal text.

    Returns:
        The position of the first prompt of each prompt's family, (N,).
    """
    row_of = {prompt.uid: row for row, prompt in enumerate(prompts)}
    origin = [row_of.get(prompt.copied_from, row) for row, prompt in enumerate(prompts)]
    first_with_text: dict[str, int] = {}
    same = [first_with_text.setdefault(prompt.normalised_text, row) for row, prompt in enumerate(prompts)]
    links = np.array([*enumerate(origin), *enumerate(same)]).reshape(-1, 2).T
    graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(len(prompts), len(prompts)))
    group = connected_components(graph, directed=False)[1]
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    return first[member]


def bin_by(values: Float[np.ndarray, " N"], rows: Int[np.ndarray, " M"], bins: int) -> Int[np.ndarray, " N"]:
    """Bins a label at the quantiles of the planned prompts. Equal values share a bin; NaN is a bin of its own.

    Args:
        values: Label of every prompt, (N,).
        rows: Planned rows, (M,).
        bins: Number of bins. Fewer result if many values are equal.

    Returns:
        The bin of every prompt, from 0. The highest number is the bin of prompts without a value.
    """
    known = values[rows][~np.isnan(values[rows])]
    edges = np.quantile(known, np.arange(1, bins) / bins) if len(known) else np.zeros(0)
    return np.where(np.isnan(values), bins, np.searchsorted(edges, values, side="left"))


def require_features(reader: str, prompts: Sequence[Prompt], features: Features | None) -> Features:
    """Returns the feature rows after a check that all numbers are finite.

    Raises:
        InputError: if there are no features, not one row per prompt, or a row with NaN or infinity; the message names
            prompts.
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
    """Counts the characters of each prompt's text."""
    return np.fromiter((len(prompt.text) for prompt in prompts), dtype=np.float64, count=len(prompts))
