"""The plain operations, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.data.clustering import RandomClusters, TopicClusters
from saerl_lightning.data.curriculum import LabelOrder, LengthOrder
from saerl_lightning.data.filtering import RandomFilter
from saerl_lightning.data.mixing import TailMixing
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt


def prompt(uid, text="?", topic=None, **labels):
    return Prompt.asking(str(uid), text, "1", topic=topic, labels=labels)


POOL = [prompt(i, "x" * (7 * i % 10), "ba"[i % 2], difficulty=float(-i)) for i in range(10)]


def test_random_filter_drops_its_share_of_the_planned_with_the_reason():
    plan = SamplePlan.sequential(10, 2).drop({0: "too long", 1: "too long"})
    kept = RandomFilter(0.25, seed=3).apply(plan, POOL, None)
    assert len(kept.rows) == 6
    assert np.array_equal(kept.rows, np.sort(kept.rows))  # the order of the others stays
    drawn = {row: why for row, why in kept.dropped.items() if row > 1}
    assert set(drawn.values()) == {"random 0.25 of the prompts (seed 3)"} and len(drawn) == 2
    assert set(drawn) != set(RandomFilter(0.25, seed=4).apply(plan, POOL, None).dropped) - {0, 1}


def test_topics_are_clusters_in_alphabetical_order_and_no_topic_is_the_last():
    pool = [prompt(0, topic="geometry"), prompt(1), prompt(2, topic="algebra"), prompt(3, topic="geometry")]
    planned = TopicClusters().apply(SamplePlan.sequential(4, 2), pool, None)
    assert planned.cluster.tolist() == [1, 2, 0, 1]
    assert planned.batches().tolist() == [[0, 3], [1, 2]]  # geometry, then what is left over, in the present order


def test_random_clusters_are_of_equal_size():
    labels = RandomClusters(3, seed=1).label(SamplePlan.sequential(10, 2), POOL, None)
    assert sorted(np.bincount(labels).tolist()) == [3, 3, 4]
    assert not np.array_equal(labels, RandomClusters(3, seed=2).label(SamplePlan.sequential(10, 2), POOL, None))


def test_label_order_sorts_inside_clusters_either_way():
    plan = SamplePlan.sequential(10, 5)
    easy = LabelOrder().apply(plan, POOL, None)
    assert easy.rows.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert easy.difficulty.tolist() == [-i for i in range(10)]
    assert LabelOrder(descending=True).apply(plan, POOL, None).rows.tolist() == list(range(10))
    clustered = LabelOrder().apply(TopicClusters().apply(plan, POOL, None), POOL, None)
    assert clustered.rows.tolist() == [9, 7, 5, 3, 1, 8, 6, 4, 2, 0]


def test_length_order_serves_short_prompts_first():
    assert LengthOrder().apply(SamplePlan.sequential(10, 5), POOL, None).rows.tolist() == [
        *(0, 3, 6, 9, 2),
        *(5, 8, 1, 4, 7),
    ]


def test_tail_mixing_by_hand():
    plan = SamplePlan.sequential(17, 3)  # batches 0..4 and two left over
    mixed = TailMixing(0.4).apply(plan, [prompt(i) for i in range(17)], None)  # round(1.2) = 1 a batch
    expected = [[0, 1, 5], [3, 4, 2], [6, 7, 11], [9, 10, 8], [12, 13, 14]]
    assert mixed.batches().tolist() == expected
    assert mixed.rows[15:].tolist() == [15, 16]
    assert {row: int(b) for row, b in enumerate(mixed.mixed_from) if b >= 0} == {2: 0, 5: 1, 8: 2, 11: 3}
    assert mixed.ledger()["batch"][[2, 5, 8, 11]].tolist() == [1, 0, 3, 2]


@given(st.integers(0, 9), st.integers(1, 12), st.floats(0, 0.5))
def test_tail_mixing_moves_its_share_by_one_batch_and_loses_none(count, size, fraction):
    batches = np.random.default_rng(0).permutation(count * size).reshape(count, size)
    mixed = TailMixing(fraction).blend(batches)
    assert sorted(mixed.ravel().tolist()) == sorted(batches.ravel().tolist())
    for b, (before, after) in enumerate(zip(batches, mixed, strict=True)):
        moved = set(after) - set(before)
        partner = b ^ 1
        share = int(fraction * size + 0.5) if partner < count else 0
        assert len(moved) == share
        if moved:
            assert moved <= set(batches[partner])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RandomFilter(1.0), "RandomFilter.fraction is 1.0; write"),
        (lambda: RandomFilter(-0.1), "RandomFilter.fraction is -0.1; write"),
        (lambda: RandomFilter(float("nan")), "RandomFilter.fraction is nan; write"),
        (lambda: TailMixing(0.6), "TailMixing.fraction is 0.6; write"),
        (lambda: RandomClusters(0), "RandomClusters.clusters is 0; write"),
        (
            lambda: LabelOrder("dificulty").apply(SamplePlan.sequential(10, 2), POOL, None),
            "'dificulty', but no prompt has it; labels present: difficulty",
        ),
        (
            lambda: TopicClusters().apply(SamplePlan.sequential(1, 1), [prompt(0)], None),
            "no prompt with a topic",
        ),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(InputError, match=said):
        make()
