"""Cluster-first, easy-to-hard order, as pure functions of positions and numbers.

M planned prompts, N in the pool, P a batch. All steps but the sorting are O(M), without Python loops over prompts,
clusters or batches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from saerl_lightning.plan import SamplePlan

ONE_END = 0.35  # below this share of an order, or above the rest, lies one end of it


def cluster_first(
    rows: Int[np.ndarray, " M"], cluster: Int[np.ndarray, " N"], difficulty: Float[np.ndarray, " N"], batch_size: int
) -> Int[np.ndarray, " M"]:
    """Orders rows so that each batch holds one cluster and the batches of every cluster get harder.

    Each cluster is sorted by difficulty and cut into batches of P. Members beyond whole batches (evenly spaced, so that
    the rest remains representative) form a pool of left-overs, which is sorted in the same way and treated as one more
    cluster. Batch k of n of a cluster is placed at (k + 0.5) / n of the epoch, so all clusters start and end together.

    Args:
        rows: Pool rows to order, (M,). Equal difficulties keep this order; NaN sorts last.
        cluster: Cluster of every prompt of the pool, (N,).
        difficulty: Rating of every prompt of the pool, (N,). If all are NaN, the order inside clusters does not change.
        batch_size: Number of prompts per batch (P).

    Returns:
        A permutation of `rows`: whole batches first, then the M % P rows that fill none (evenly spaced left-overs).

    Source: cluster-first and easy-to-hard inside clusters are SAERL's (arXiv 2605.27354, as summarised by others); the
    proportional interleaving and the treatment of left-overs are ours.
    """
    labels, sizes = np.unique(cluster[rows], return_inverse=True, return_counts=True)[1:]
    # Two stable sorts: by difficulty (NaN last), then by cluster, so that ties keep the given order.
    order = np.argsort(difficulty[rows], kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # position inside the cluster, from 0
    beyond = spread(place, np.repeat(sizes, sizes), np.repeat(sizes % batch_size, sizes))

    pool = np.sort(order[beyond])
    pool = pool[np.argsort(difficulty[rows[pool]], kind="stable")]
    last = spread(np.arange(len(pool)), np.full(len(pool), len(pool)), np.full(len(pool), len(pool) % batch_size))

    served = np.concatenate([order[~beyond], pool[~last]]).reshape(-1, batch_size)  # (B, P), stream by stream
    streams = np.append(sizes, len(pool)) // batch_size  # whole batches of each stream
    return rows[np.concatenate([served[interleave(streams)].ravel(), pool[last]])]


def spread(
    place: Int[np.ndarray, " M"], size: Int[np.ndarray, " M"], count: Int[np.ndarray, " M"]
) -> Bool[np.ndarray, " M"]:
    """Picks `count` evenly spaced places out of `size`: floor((j + 0.5) * size / count) for j = 0 .. count - 1.

    Computed for each place, so that many groups are handled at once: place p is picked if some j falls into it, which
    is the case if ceil(p * count / size - 0.5) increases from p to p + 1. Integer arithmetic makes this exact.
    """

    def below(p: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
        return -((size - 2 * p * count) // (2 * size))

    return below(place + 1) > below(place)


def interleave(streams: Int[np.ndarray, " S"]) -> Int[np.ndarray, " B"]:
    """Merges streams of batches so that each is spread evenly over the epoch.

    Args:
        streams: Number of batches in each stream. The streams' batches are numbered one after the other.

    Returns:
        Positions of the batches in the order they are served. At equal places, the earlier stream is first.
    """
    lengths = np.repeat(streams, streams)
    k = np.arange(len(lengths)) - np.repeat(np.cumsum(streams) - streams, streams)
    return np.argsort((k + 0.5) / lengths, kind="stable")


def permute_within(
    values: Shaped[np.ndarray, " N"], groups: Int[np.ndarray, " N"], rows: Int[np.ndarray, " M"], seed: int
) -> Shaped[np.ndarray, " N"]:
    """Permutes values at random among the planned rows of each group. Other rows keep their values.

    Args:
        values: Value of every row, (N,).
        groups: Group of every row, (N,).
        rows: Planned rows, (M,), in any order.
        seed: Seed of the random permutation.
    """
    given = np.sort(rows)
    drawn = np.random.default_rng(seed).permutation(given)
    # A stable sort by group aligns each planned row with a randomly drawn row of its own group.
    given, drawn = (each[np.argsort(groups[each], kind="stable")] for each in (given, drawn))  # both group by group
    permuted = values.copy()
    permuted[given] = values[drawn]
    return permuted


def one_end(plan: SamplePlan, batches: int, updates: int = 1) -> str:
    """Tells that a run ends before its plan does, and so trains on one end of an order by difficulty; "" if it doesn't.

    Args:
        plan: Plan whose prompts a curriculum has ordered.
        batches: Number of batches that the run serves.
        updates: Optimiser steps on each batch, for what to write instead.
    """
    whole = plan.batches()
    rated = plan.difficulty[whole]
    if not 0 < batches < len(whole) or not np.isfinite(rated).all():
        return ""
    # Share of all prompts that are rated below half of the served ones; ties count half.
    middle = np.median(rated[:batches])
    below = float(np.mean(rated < middle) + np.mean(rated == middle) / 2)
    if ONE_END <= below <= 1 - ONE_END:
        return ""
    return (
        f"this run ends after {batches:,} of the plan's {len(whole):,} batches ({batches / len(whole):.0%}), and serves the "
        f"{'lowest' if below < ONE_END else 'highest'} of its order: half of its prompts are rated below {below:.0%} of all. "
        f"For the whole order write --trainer.max_steps {len(whole) * updates}, or plan a random part of the prompts: "
        f"--data.train '{{part: {{source: FILE, count: {batches * plan.batch_size}}}}}'"
    )
