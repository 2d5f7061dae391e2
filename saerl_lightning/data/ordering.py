"""Cluster-first order with easy-to-hard streams, in numpy. Knows positions and numbers only, no prompts.

M planned prompts, N in the pool, P a batch. Sorting is the only step above O(M), and nothing loops over prompts,
clusters or batches.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


def cluster_first(
    rows: Int[np.ndarray, " M"], cluster: Int[np.ndarray, " N"], difficulty: Float[np.ndarray, " N"], batch_size: int
) -> Int[np.ndarray, " M"]:
    """Orders rows so that batches hold one cluster each and every cluster's stream of batches gets harder.

    Each cluster is sorted by difficulty and cut into batches of P; what a cluster has beyond whole batches (evenly
    spaced members, so that the rest stays a fair picture of it) goes to a pool of left-overs, sorted alike: one more
    stream. Batch k of a stream of n stands at (k + 0.5) / n of the epoch, so all streams start and end together.

    Args:
        rows: pool rows to order, (M,). Equal difficulties, and NaN which sorts last, keep this order.
        cluster: label of every prompt of the pool, (N,).
        difficulty: rating of every prompt of the pool, (N,); all NaN keeps the present order inside clusters.
        batch_size: prompts a batch (P).

    Returns:
        A permutation of `rows`. Whole batches come first; the M % P rows that fill none (evenly spaced members of the
        left-overs) stand at the end.

    Source: cluster-first and easy-to-hard inside clusters are SAERL's (arXiv 2605.27354, as summarised by others);
    the proportional interleaving and the treatment of left-overs are ours.
    """
    labels, sizes = np.unique(cluster[rows], return_inverse=True, return_counts=True)[1:]
    order = np.argsort(difficulty[rows], kind="stable")  # easy to hard, NaN last
    order = order[np.argsort(labels[order], kind="stable")]  # cluster by cluster
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # 0.. inside each cluster
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

    Asked place by place, so that many groups are answered at once: `place` p is picked if some j falls into it, that
    is if ceil(p * count / size - 0.5) grows from p to p + 1. In whole numbers, hence exact.
    """

    def below(p: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
        return -((size - 2 * p * count) // (2 * size))

    return below(place + 1) > below(place)


def interleave(streams: Int[np.ndarray, " S"]) -> Int[np.ndarray, " B"]:
    """Merges streams of the given lengths, laid end to end, each spread evenly over the whole.

    Returns:
        Positions of the batches in the order they are served; at equal places the earlier stream goes first.
    """
    lengths = np.repeat(streams, streams)
    k = np.arange(len(lengths)) - np.repeat(np.cumsum(streams) - streams, streams)
    return np.argsort((k + 0.5) / lengths, kind="stable")


def permute_within(
    values: Shaped[np.ndarray, " N"], groups: Int[np.ndarray, " N"], rows: Int[np.ndarray, " M"], seed: int
) -> Shaped[np.ndarray, " N"]:
    """Permutes values at random among the planned rows of each group; the other rows keep theirs.

    Args:
        values: (N,).
        groups: group of every row, (N,).
        rows: planned rows, (M,); their order does not matter.
        seed: of the permutation.
    """
    given = np.sort(rows)
    drawn = np.random.default_rng(seed).permutation(given)
    given, drawn = (each[np.argsort(groups[each], kind="stable")] for each in (given, drawn))  # both group by group
    permuted = values.copy()
    permuted[given] = values[drawn]
    return permuted
