"""The cluster-first order, by hand and by property."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.data.clustering import BalancedServing
from saerl_lightning.data.ordering import cluster_first, interleave, one_end, spread
from saerl_lightning.plan import SamplePlan

NAN = float("nan")


@st.composite
def pools(draw):
    """Planned rows of a pool, their clusters and difficulties (few values: many ties), and a batch size."""
    pool = draw(st.integers(1, 60))
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cluster = seed.integers(-1, draw(st.integers(0, 8)), size=pool)
    difficulty = draw(st.sampled_from([1.0, 0.3])) * seed.choice([0, 1, 2, 3, NAN, 5.5, -1], size=pool)
    rows = seed.permutation(pool)[: draw(st.integers(1, pool))]
    return rows, cluster, difficulty, draw(st.integers(1, 9))


def key(difficulty):
    return np.nan_to_num(difficulty, nan=99.0)


def test_cluster_first_orders_two_clusters_as_worked_by_hand():
    # Cluster 0 has 5 members, cluster 1 has 3; batches of 2. Sorted by difficulty: 0: a b c d e, 1: x y z.
    a, x, b, y, c, z, d, e = range(8)
    cluster = np.array([0, 1, 0, 1, 0, 1, 0, 0])
    difficulty = np.array([1.0, 10, 2, 20, 3, 30, 4, 5])
    # The middle ones, c and y, are left over and make a batch of their own: half-way of the epoch, as 1's only batch,
    # which goes first for it is the earlier stream. Cluster 0's two batches stand at a quarter and three quarters.
    expected = [a, b, x, z, c, y, d, e]
    assert cluster_first(np.array([e, z, c, y, a, x, d, b]), cluster, difficulty, 2).tolist() == expected


def test_unrated_prompts_come_last_and_no_rating_keeps_the_present_order():
    one = np.zeros(4, dtype=int)
    rows = np.array([2, 0, 3, 1])
    assert cluster_first(rows, one, np.array([5.0, NAN, NAN, 1.0]), 2).tolist() == [3, 0, 2, 1]
    assert cluster_first(rows, one, np.full(4, NAN), 2).tolist() == [2, 0, 3, 1]
    assert cluster_first(rows, np.arange(4), np.full(4, NAN), 2).tolist() == [2, 0, 3, 1]  # all left over


def test_left_overs_are_spread_over_the_cluster():
    # floor((j + 0.5) * 10 / 3) = 1, 5, 8
    assert np.flatnonzero(spread(np.arange(10), np.full(10, 10), np.full(10, 3))).tolist() == [1, 5, 8]


@given(st.integers(1, 200), st.data())
def test_spread_picks_as_many_as_asked(size, data):
    count = data.draw(st.integers(0, size))
    picked = np.flatnonzero(spread(np.arange(size), np.full(size, size), np.full(size, count)))
    assert picked.tolist() == [(2 * j + 1) * size // (2 * count) for j in range(count)]


def test_streams_merge_in_proportion():
    # Lengths 4 and 2: places 1/8 3/8 5/8 7/8 and 1/4 3/4.
    assert interleave(np.array([4, 2])).tolist() == [0, 4, 1, 2, 5, 3]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_every_prefix_of_the_epoch_holds_each_streams_share(streams):
    lengths = np.array(streams)
    stream = np.repeat(np.arange(len(lengths)), lengths)[interleave(lengths)]
    for done in range(1, stream.size + 1):
        share = lengths * done / stream.size
        assert (np.abs(np.bincount(stream[:done], minlength=len(lengths)) - share) <= len(lengths) / 2 + 1e-9).all()


@given(pools())
def test_cluster_first_keeps_every_row_and_gets_harder_in_each_cluster(given_pool):
    rows, cluster, difficulty, size = given_pool
    ordered = cluster_first(rows, cluster, difficulty, size)
    assert sorted(ordered.tolist()) == sorted(rows.tolist())

    whole = len(rows) // size
    batches = ordered[: whole * size].reshape(whole, size)
    assert (np.diff(key(difficulty[batches]), axis=1) >= 0).all()  # easy to hard inside a batch

    pure = (cluster[batches] == cluster[batches][:, :1]).all(axis=1)
    labels, sizes = np.unique(cluster[rows], return_counts=True)
    for label, count in zip(labels, sizes, strict=True):
        own = batches[pure & (cluster[batches[:, 0]] == label)]
        assert len(own) >= count // size  # left-overs may add a pure batch by chance, never take one away
        if (sizes % size == 0).all():
            assert len(own) == count // size
            assert (np.diff(key(difficulty[own.ravel()])) >= 0).all()  # the whole stream gets harder
    if (sizes % size == 0).all():
        assert pure.all()


@given(pools())
def test_one_cluster_is_plain_sorting_and_all_distinct_clusters_too(given_pool):
    rows, cluster, difficulty, size = given_pool
    one = cluster_first(rows, np.zeros_like(cluster), difficulty, size)
    whole = len(rows) // size * size
    assert (np.diff(key(difficulty[one[:whole]])) >= 0).all()
    if size > 1:
        distinct = cluster_first(rows, np.arange(len(cluster)), difficulty, size)
        assert (np.diff(key(difficulty[distinct[:whole]])) >= 0).all()


@given(pools())
def test_ties_keep_the_present_order(given_pool):
    rows, cluster, difficulty, _ = given_pool
    ordered = cluster_first(rows, cluster, difficulty, 1)  # no left-overs
    was = {row: i for i, row in enumerate(rows.tolist())}
    for label in np.unique(cluster[rows]):
        own = [row for row in ordered.tolist() if cluster[row] == label]
        assert own == sorted(own, key=lambda row: (key(difficulty)[row], was[row]))


# What takes a second would take hours where its work grows with the square of the prompts.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("clusters", [16, 1_000_000])
def test_a_million_prompts_are_ordered(clusters):
    random = np.random.default_rng(0)
    rows, cluster = random.permutation(1_000_000), random.integers(clusters, size=1_000_000)
    ordered = cluster_first(rows, cluster, random.random(1_000_000), 64)
    assert np.bincount(ordered).max() == 1


@given(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_clusters_of_whole_batches_give_pure_batches_that_get_harder(size, batches, seed):
    random = np.random.default_rng(seed)
    cluster = random.permutation(np.repeat(np.arange(len(batches)), np.array(batches) * size))
    difficulty = random.choice([0.0, 1.0, 2.0, 3.0], size=len(cluster))
    served = cluster_first(random.permutation(len(cluster)), cluster, difficulty, size).reshape(-1, size)
    assert (cluster[served] == cluster[served][:, :1]).all()
    for label, count in enumerate(batches):
        stream = served[cluster[served[:, 0]] == label]
        assert len(stream) == count
        assert (np.diff(difficulty[stream.ravel()]) >= 0).all()


def ordered_by(ratings: list[float], batch_size: int = 2) -> SamplePlan:
    """A plan that serves prompts in their own order, with a rating of difficulty each."""
    return replace(SamplePlan.sequential(len(ratings), batch_size), difficulty=np.array(ratings, dtype=float))


def test_a_run_that_ends_before_an_easy_to_hard_order_is_told_what_it_serves():
    said = one_end(ordered_by(list(range(20))), batches=3, updates=2)
    # 6 of 20 prompts, rated 0 to 5: their median 2.5 lies above 3 of 20 ratings.
    assert "after 3 of the plan's 10 batches (30%)" in said and "the lowest" in said and "below 15% of all" in said
    assert "--trainer.max_steps 20" in said and "count: 6" in said
    assert "the highest" in one_end(ordered_by(list(range(20, 0, -1))), batches=3)


@pytest.mark.parametrize(
    ("ratings", "batches"),
    [
        (list(range(20)), 10),  # the whole plan
        (list(range(20)), 25),  # more than one pass
        ([0, 9, 1, 8, 2, 7, 3, 6, 4, 5], 2),  # both ends from the start
        ([3.0] * 20, 2),  # all equal
        ([NAN] * 20, 2),  # nothing is rated
    ],
)
def test_a_run_that_serves_no_end_of_an_order_is_not_warned(ratings, batches):
    assert one_end(ordered_by(ratings), batches) == ""


def test_balanced_serving_takes_the_clusters_in_turn_as_worked_by_hand():
    """Batches of clusters a a b a c b, then one of mostly c: in turn a b c, a b c, a; the rest that fills none stays."""
    cluster = np.array([0, 0, 0, 0, 1, 1, 0, 0, 2, 2, 1, 1, 2, 0, 2, 1])
    plan = replace(SamplePlan.sequential(16, 3), cluster=cluster)
    operation = BalancedServing()
    # Batches (0 1 2), (3 4 5), (6 7 8), (9 10 11), (12 13 14): of clusters 0, 1, 0, 1, 2.
    assert operation.apply(plan, [], None).rows.tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 6, 7, 8, 9, 10, 11, 15]
    assert operation.idle() == "" and operation.metrics() == {"balanced": 3 / 5}  # cluster 2 has one batch
    alone = operation.apply(SamplePlan.sequential(16, 3), [], None)
    assert alone.rows.tolist() == list(range(16)) and operation.idle() == "all batches are of one cluster"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_no_cluster_is_more_than_one_batch_ahead_of_one_that_is_not_used_up(owners):
    plan = replace(SamplePlan.sequential(len(owners), 1), cluster=np.array(owners))
    served = np.array(owners)[BalancedServing().apply(plan, [], None).rows]
    assert sorted(served) == sorted(owners)
    for end in range(1, len(served) + 1):
        left = {*served[end:].tolist()}
        counts = {each: (served[:end] == each).sum() for each in {*owners}}
        assert not left or max(counts.values()) <= min(counts[each] for each in left) + 1
