"""What each control keeps and what it breaks, by property; pools have few values, so many ties, and unplanned prompts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lightning.data.callback import Clustering, Curriculum, Filtering
from saerl_lightning.data.clustering import PermutedClusters, SameSizeClusters
from saerl_lightning.data.curriculum import LabelOrder, ShuffledOrder
from saerl_lightning.data.filtering import LabelFilter, LengthFilter, MatchedFilter
from saerl_lightning.data.labels import bin_by
from saerl_lightning.data.mixing import FullMixing, TailMixing
from saerl_lightning.data.ordering import permute_within
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt


class Given(Clustering):
    """Labels that were drawn before."""

    def __init__(self, labels):
        self.labels = labels

    def label(self, plan, prompts, features):
        return self.labels


class Below(Filtering):
    """Drops prompts whose drawn number is below the median of the planned."""

    def __init__(self, numbers):
        self.numbers = numbers

    def quality(self, plan, prompts, features):
        return self.numbers

    def keep(self, plan, prompts, features):
        return plan.quality >= np.median(plan.quality[plan.rows])


class Rated(Curriculum):
    """Ratings that were drawn before."""

    def __init__(self, ratings):
        self.ratings = ratings

    def difficulty(self, plan, prompts, features):
        return self.ratings


# Seeds of a pool: prompts, seed, batch size, share that is not planned.
POOLS = st.tuples(st.integers(2, 80), st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0, 0.5))


def planned_pool(drawn, labelled=0.8):
    """Prompts, some without a difficulty, a shuffled plan over some of them, and a generator for more."""
    pool, seed, size, share = drawn
    random = np.random.default_rng(seed)
    labels = [{"difficulty": float(random.integers(6))} if random.random() < labelled else {} for _ in range(pool)]
    labels[0] = {"difficulty": 1.0}
    prompts = [Prompt.asking(f"p{i}", "x" * int(random.integers(5)), "1", labels=labels[i]) for i in range(pool)]
    plan = SamplePlan.sequential(pool, size).reorder(random.permutation(pool))
    left_out = random.choice(pool, int(share * pool), replace=False)
    return prompts, plan.drop(dict.fromkeys(left_out.tolist(), "left out")), random


def bins_of(prompts, plan, bins):
    values = np.array([prompt.labels.get("difficulty", np.nan) for prompt in prompts])
    return bin_by(values, plan.rows, bins)


@given(POOLS, st.integers(1, 12))
def test_bins_never_part_equal_values_and_keep_the_order(drawn, bins):
    prompts, plan, _ = planned_pool(drawn)
    values = np.array([prompt.labels.get("difficulty", np.nan) for prompt in prompts])
    number = bin_by(values, plan.rows, bins)
    assert (number[np.isnan(values)] == bins).all() and (number[~np.isnan(values)] < bins).all()
    known = np.flatnonzero(~np.isnan(values))
    by_value = known[np.argsort(values[known], kind="stable")]
    assert (np.diff(number[by_value]) >= 0).all()
    assert all(len(set(number[values == value])) == 1 for value in np.unique(values[known]))


def test_bins_of_distinct_values_are_of_equal_size():
    assert np.bincount(bin_by(np.random.default_rng(0).permutation(100) / 7, np.arange(100), 10)).tolist() == [10] * 10


@given(POOLS, st.integers(1, 5), st.integers(0, 99))
def test_same_size_clusters_keep_the_histogram_of_the_planned(drawn, clusters, seed):
    prompts, plan, random = planned_pool(drawn)
    inner = random.integers(clusters, size=len(prompts))
    labels = SameSizeClusters(Given(inner), seed).label(plan, prompts, None)
    assert Counter(labels[plan.rows].tolist()) == Counter(inner[plan.rows].tolist())
    again = SameSizeClusters(Given(inner), seed).label(plan.reorder(np.sort(plan.rows)), prompts, None)
    assert np.array_equal(labels, again)  # whatever the order of the plan


@given(POOLS, st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_permuted_clusters_keep_every_clusters_size_and_difficulties(drawn, clusters, bins, seed):
    prompts, plan, random = planned_pool(drawn, labelled=1)
    inner = random.integers(clusters, size=len(prompts))
    labels = PermutedClusters(Given(inner), bins=bins, seed=seed).label(plan, prompts, None)
    profile = bins_of(prompts, plan, bins)
    rows = plan.rows.tolist()
    assert Counter((labels[r], profile[r]) for r in rows) == Counter((inner[r], profile[r]) for r in rows)


@given(POOLS, st.integers(1, 6), st.integers(0, 99))
def test_matched_filter_drops_as_many_of_each_bin(drawn, bins, seed):
    prompts, plan, random = planned_pool(drawn, labelled=1)
    inner = Below(random.integers(4, size=len(prompts)).astype(float))
    theirs, ours = inner.apply(plan, prompts, None), MatchedFilter(inner, bins=bins, seed=seed)
    kept = ours.apply(plan, prompts, None)
    profile = bins_of(prompts, plan, bins)

    def dropped(result):
        return Counter(profile[row] for row in result.dropped.keys() - plan.dropped.keys())

    assert dropped(kept) == dropped(theirs)
    assert ours.metrics()["dropped"] == inner.metrics()["dropped"] == len(plan.rows) - len(kept.rows)
    assert np.array_equal(kept.quality, inner.numbers)


@pytest.mark.parametrize(
    "operation",
    [
        PermutedClusters(Given(np.zeros(40, dtype=int))),
        MatchedFilter(Below(np.arange(40.0))),
        LabelOrder(),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_a_label_that_some_planned_prompts_lack_is_refused_and_one_that_dropped_prompts_lack_is_not(operation):
    """Where most prompts lack the label, matching on it would match on nothing."""
    prompts = [Prompt.asking(f"p{i}", "?", "1", labels={"difficulty": i % 3} if i < 5 else {}) for i in range(40)]
    with pytest.raises(InputError, match=r"needs 'difficulty' for every prompt, but 35 of 40 .* \(first: 'p5'\)"):
        operation.apply(SamplePlan.sequential(40, 2), prompts, None)
    labelled = SamplePlan.sequential(40, 2).drop(dict.fromkeys(range(5, 40), "left out"))
    assert set(operation.apply(labelled, prompts, None).rows.tolist()) <= set(range(5))


def test_each_control_destroys_what_it_controls_for():
    random = np.random.default_rng(0)
    prompts = [Prompt.asking(f"p{i}", "?", "1", labels={"difficulty": i % 3}) for i in range(3000)]
    plan, inner = SamplePlan.sequential(3000, 10), random.integers(4, size=3000)
    for control in (SameSizeClusters(Given(inner)), PermutedClusters(Given(inner))):
        labels = control.label(plan, prompts, None)
        assert abs((labels == inner).mean() - 1 / 4) < 0.04  # chance
    numbers = random.random(3000)
    dropped = [set(f.apply(plan, prompts, None).dropped) for f in (Below(numbers), MatchedFilter(Below(numbers)))]
    assert abs(len(dropped[0] & dropped[1]) / 1500 - 1 / 2) < 0.05
    ratings = ShuffledOrder(Rated(numbers)).difficulty(plan, prompts, None)
    assert abs(np.corrcoef(ratings, numbers)[0, 1]) < 0.06


@given(POOLS, st.integers(1, 4), st.integers(0, 99))
def test_shuffled_order_keeps_each_clusters_ratings(drawn, clusters, seed):
    prompts, plan, random = planned_pool(drawn)
    ratings, cluster = random.random(len(prompts)), random.integers(clusters, size=len(prompts))
    plan = Given(cluster).apply(plan, prompts, None)
    shuffled = ShuffledOrder(Rated(ratings), seed).apply(plan, prompts, None)
    plain = Rated(ratings).apply(plan, prompts, None)
    for label in range(clusters):
        own = plan.rows[cluster[plan.rows] == label]
        assert sorted(shuffled.difficulty[own]) == sorted(ratings[own])
    assert sorted(shuffled.rows.tolist()) == sorted(plain.rows.tolist())
    assert np.array_equal(shuffled.cluster[shuffled.rows], plain.cluster[plain.rows])  # streams keep their shape


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_permutation_stays_inside_groups_and_planned_rows(n, groups, seed):
    random = np.random.default_rng(seed)
    values, group = np.arange(n), random.integers(groups, size=n)
    rows = random.permutation(n)[: random.integers(n + 1)]
    permuted = permute_within(values, group, rows, seed)
    assert np.array_equal(group[permuted], group)  # a value is its own row here
    others = np.setdiff1d(values, rows)
    assert np.array_equal(permuted[others], others)
    assert sorted(permuted.tolist()) == values.tolist()


@given(st.integers(0, 12), st.integers(1, 9), st.one_of(st.none(), st.integers(2, 5)), st.integers(0, 99))
def test_full_mixing_conserves_prompts_inside_each_window(count, size, window, seed):
    batches = np.random.default_rng(0).permutation(count * size).reshape(count, size)
    mixed = FullMixing(window, seed).blend(batches)
    width = window or max(1, count)
    for start in range(0, count, width):
        before, after = batches[start : start + width], mixed[start : start + width]
        assert sorted(before.ravel().tolist()) == sorted(after.ravel().tolist())


def test_mixing_runs_from_none_to_full():
    prompts = [Prompt.asking(f"p{i}", "?", "1") for i in range(1000)]
    plan, shares = SamplePlan.sequential(1000, 20), []
    for mixing in (TailMixing(0.0), TailMixing(0.1), TailMixing(0.5), FullMixing()):
        mixed = mixing.apply(plan, prompts, None)
        share = mixing.metrics()["share"]
        assert share == np.count_nonzero(mixed.mixed_from >= 0) / 1000
        shares.append(share)
    assert shares[:3] == [0.0, 0.1, 0.5]
    assert abs(shares[3] - 0.98) < 0.02  # one prompt in fifty falls back into its own batch


@settings(max_examples=50)
@given(POOLS, st.integers(1, 4), st.booleans())
def test_equal_and_duplicate_difficulties_keep_their_order_within_a_cluster(drawn, clusters, descending):
    prompts, plan, random = planned_pool(drawn, labelled=1)
    cluster = random.integers(clusters, size=len(prompts))
    plan = Given(cluster).apply(SamplePlan.sequential(len(prompts), 1).drop(dict(plan.dropped)), prompts, None)
    ordered = LabelOrder(descending=descending).apply(plan, prompts, None)
    place = {row: i for i, row in enumerate(plan.rows.tolist())}
    for label in range(clusters):
        stream = [row for row in ordered.rows.tolist() if cluster[row] == label]
        rating = ordered.difficulty
        assert stream == sorted(stream, key=lambda row: (rating[row], place[row]))


@pytest.mark.parametrize(("fraction", "gone"), [(0.0, []), (0.25, [1]), (0.4, [1, 3]), (0.75, [1, 2, 3])])
def test_a_label_filter_drops_the_lowest_and_of_equals_those_served_later(fraction, gone):
    """Served in the order 2, 0, 3, 1 with the labels 2, 3, 1, 1; row 4 is not planned and has none."""
    labels = [{"truth": value} for value in (3.0, 1.0, 2.0, 1.0)] + [{}]
    prompts = [Prompt.asking(f"q{i}", f"question {i}", labels=each) for i, each in enumerate(labels)]
    plan = SamplePlan.sequential(5, 1).drop({4: "elsewhere"}).reorder(np.array([2, 0, 3, 1]))
    kept = LabelFilter("truth", fraction).apply(plan, prompts, None)
    assert sorted(kept.dropped.keys() - {4}) == gone  # .4 of four is 1.6, rounded to two
    assert all(kept.dropped[row] == f"truth among the lowest {fraction:g} of the prompts" for row in gone)


@given(POOLS, st.floats(0, 0.9))
def test_length_filter_drops_the_longest(drawn, fraction):
    prompts, plan, _ = planned_pool(drawn)
    kept = LengthFilter(fraction).apply(plan, prompts, None)
    gone = [len(prompts[row].text) for row in kept.dropped.keys() - plan.dropped.keys()]
    assert len(gone) == round(fraction * len(plan.rows))
    assert not gone or not len(kept.rows) or min(gone) >= max(len(prompts[row].text) for row in kept.rows.tolist())
