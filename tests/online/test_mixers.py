"""Mixers and domains: proportions worked by hand, and what all of them promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import saerl_lightning.online
import saerl_lightning.online.mixers
from saerl_lightning.errors import InputError
from saerl_lightning.online.domains import ClusterDomains, Domains, LabelDomains, RandomDomains
from saerl_lightning.online.mixers.dads import DADS, exponential_means
from saerl_lightning.online.mixers.dump import DUMP
from saerl_lightning.online.mixers.mixer import DomainResults, Mixer, dealt_places, floored, largest_remainder, means
from saerl_lightning.online.mixers.reward_gap import RewardGap
from saerl_lightning.online.mixers.static_weights import StaticWeights
from saerl_lightning.online.mixers.tscl import TSCL, slopes
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt
from tests.shipped_classes import shipped

MIXERS = {
    "StaticWeights": StaticWeights(),
    "RewardGap": RewardGap(temperature=0.3, warmup=0),
    "DUMP": DUMP(warmup=0),
    "TSCL": TSCL(warmup=0),
    "DADS": DADS(),
}
DOMAINS = {
    "ClusterDomains": ClusterDomains(),
    "LabelDomains": LabelDomains(),
    "RandomDomains": RandomDomains(LabelDomains("level")),
}


def results(pass_rate=None, advantage=None, groups=(3, 1), sizes=(30, 10), steps=9, kept=6) -> DomainResults:
    """Results of domains named a, b, …, each list the latest ones of a domain."""
    count = len(pass_rate or advantage)
    names = "abcdefgh"[:count]

    def rows(given):
        given = given or [[]] * count
        return np.array([[np.nan] * (kept - len(each)) + list(each) for each in given])

    return DomainResults(
        tuple(names), np.array(sizes[:count]), np.array(groups[:count]), rows(pass_rate), rows(advantage), steps
    )


def test_every_shipped_mixer_and_division_is_tried_here():
    assert shipped(Mixer, saerl_lightning.online.mixers).keys() == MIXERS.keys()
    assert shipped(Domains, saerl_lightning.online).keys() == DOMAINS.keys()


def test_the_reward_gap_is_the_tables():
    """Means .8 and .5: softmax((0, .3) / .3) = (1, e) / (1 + e) = (.2689, .7311)."""
    made = RewardGap(temperature=0.3, floor=0.05).shares(results([[0.7, 0.9], [0.5]]))
    assert made == pytest.approx([0.2689, 0.7311], abs=1e-4)


def test_dump_is_the_tables():
    """Of 3 and 1 groups: sqrt(2 ln 5 / 4) = .8971, sqrt(2 ln 5 / 2) = 1.2686; + (.5, .2), softmax = (.4821, .5179)."""
    known = results(advantage=[[0.4, 0.6], [0.2]])
    assert DUMP().scores(known) - [0.5, 0.2] == pytest.approx([0.8971, 1.2686], abs=1e-4)
    assert DUMP().shares(known) == pytest.approx([0.4821, 0.5179], abs=1e-4)
    assert DUMP(exploration=0).scores(known) == pytest.approx([0.5, 0.2])


def test_tscl_is_the_tables_and_counts_a_fall_as_a_rise():
    """.1, .2, .4 have the slope .15: softmax((1.5, 0)) = (.8176, .1824)."""
    known = [[0.1, 0.2, 0.4], [0.5, 0.5, 0.5]]
    assert TSCL(temperature=0.1).shares(results(known)) == pytest.approx([0.8176, 0.1824], abs=1e-4)
    falling = TSCL().shares(results([[0.4, 0.2, 0.1], [0.5]]))
    assert falling == pytest.approx([0.8176, 0.1824], abs=1e-4)
    random = np.random.default_rng(0).random((3, 7))
    assert slopes(random) == pytest.approx(np.polyfit(np.arange(7), random.T, 1)[0])
    assert slopes(np.full((2, 4), np.nan)).tolist() == [0, 0]


def test_dads_is_worked_by_hand():
    """Means 0, then 1, half kept: .5; the other 1. (e^2 + .1, 1 + .1) / (e^2 + 1.2) = (.8719, .1281)."""
    known = results([[0.0, 1.0], [1.0]])
    assert exponential_means(known.pass_rate, 0.5).tolist() == [0.5, 1.0]
    assert DADS().shares(known) == pytest.approx([0.8719, 0.1281], abs=1e-4)
    assert DADS(temperature=1e-4).shares(known) == pytest.approx([1, 0])
    assert DADS(epsilon=1e9).shares(known) == pytest.approx([0.5, 0.5], abs=1e-6)
    assert (DADS(keep=0).kept, DADS(keep=0.5).kept, DADS(keep=0.9999).kept) == (1, 40, 10_000)


def test_fixed_weights_are_divided_by_their_sum_and_must_name_the_domains():
    known = results([[0.1], [0.2]])
    assert StaticWeights({"b": 3, "a": 1}).shares(known).tolist() == [0.25, 0.75]
    assert StaticWeights().shares(known).tolist() == [0.5, 0.5]
    with pytest.raises(
        InputError, match=r"names 'algebre', .*did you mean 'algebra'\?; the domains are algebra, geometry"
    ):
        StaticWeights({"algebre": 1}).check(["algebra", "geometry"])
    with pytest.raises(InputError, match=r"no weight for 'geometry'; write one, 0 to serve it last"):
        StaticWeights({"algebra": 1}).check(["algebra", "geometry"])
    with pytest.raises(InputError, match="gives no domain a weight above 0"):
        StaticWeights({"a": 0})


def test_a_low_proportion_is_raised_to_the_floor_before_all_are_divided():
    """(.02, .98) with .05 becomes (.05, .98) / 1.03."""
    assert floored(np.array([0.02, 0.98]), 0.05) == pytest.approx([0.05 / 1.03, 0.98 / 1.03])
    with pytest.raises(InputError, match=r"DUMP\.floor is 0\.05, and 20 domains .*; write less than 0\.05"):
        DUMP().check([str(i) for i in range(20)])
    DUMP().check([str(i) for i in range(19)])


def test_the_first_steps_keep_the_plans_proportions():
    known = results([[0.1], [0.9]], steps=4)
    assert RewardGap().shares(known).tolist() == [0.75, 0.25]
    assert RewardGap().shares(replace(known, steps=5)).tolist() != [0.75, 0.25]


def test_a_domain_without_results_is_taken_for_the_others_mean():
    assert means(np.array([[np.nan, 0.2], [np.nan, np.nan], [0.4, 0.8]])) == pytest.approx([0.2, 0.4, 0.6])
    assert means(np.full((2, 3), np.nan)).tolist() == [0, 0]


def test_a_step_adds_one_result_to_the_domains_it_served():
    """Two windows of two: a gets (.5 + 1) / 2; b nothing."""
    known = results([[0.1], [0.2, 0.3]], kept=2)
    after = known.after(np.array([0, 0]), np.array([0.5, 1.0]), np.array([0.2, 0.4]))
    assert after.pass_rate.tolist() == [[0.1, 0.75], [0.2, 0.3]]
    assert after.advantage[0, 1] == pytest.approx(0.3)
    assert (after.groups.tolist(), after.steps) == ([5, 1], 10)
    again = after.after(np.array([0, 1]), np.array([0.25, 0.0]), np.zeros(2))
    assert again.pass_rate.tolist() == [[0.75, 0.25], [0.3, 0.0]]


@given(
    some.lists(some.lists(some.floats(0, 1), max_size=6), min_size=2, max_size=8),
    some.sampled_from(list(MIXERS)),
    some.integers(0, 500),
)
def test_proportions_are_positive_sum_to_one_and_do_not_depend_on_the_domains_order(rates, name, seed):
    random = np.random.default_rng(seed)
    count = len(rates)
    known = results(rates, rates, random.integers(0, 9, count), random.integers(1, 9, count))
    mixer = MIXERS[name]
    made = mixer.shares(known)
    assert made.min() >= 0 and made.sum() == pytest.approx(1)
    assert made.min() > 0.05 / (1 + 0.05 * count) - 1e-9 or name == "DADS"
    turned = replace(
        known, **{each: getattr(known, each)[::-1] for each in ("sizes", "groups", "pass_rate", "advantage")}
    )
    assert mixer.shares(turned)[::-1] == pytest.approx(made, abs=1e-9)
    assert made.tolist() == mixer.shares(known).tolist()


def test_places_go_to_the_largest_remainders():
    """Of 3.4, 2.4, 2.2 in 8 places: 3, 2, 2, and the last to the first of the remainders .4."""
    assert largest_remainder(np.array([3.4, 2.4, 2.2]), 8).tolist() == [4, 2, 2]
    assert largest_remainder(np.array([0.1, 0.2, 0.7]) * 10, 10).tolist() == [1, 2, 7]


@pytest.mark.parametrize(
    ("shares", "owed", "left", "dealt"),
    [
        ([0.5, 0.3, 0.2], [0, 0, 0], [99, 99, 99], [5, 3, 2]),
        ([0.5, 0.3, 0.2], [0, 0, 0], [1, 99, 99], [1, 5, 4]),  # 4 of the first go .3 to .2: 2.4 and 1.6
        ([0.5, 0.3, 0.2], [0, 0, 0], [1, 4, 99], [1, 4, 5]),
        (
            [1.0, 0.0, 0.0],
            [0, 0, 0],
            [2, 6, 3],
            [2, 5, 3],
        ),  # 8 of domains that are not asked for, by what is left: 5.3, 2.7
        ([0.5, 0.3, 0.2], [-1, 0, 1], [99, 99, 99], [4, 3, 3]),
    ],
)
def test_a_used_up_domain_gives_its_places_to_the_others(shares, owed, left, dealt):
    found = dealt_places(np.array(shares), np.array(owed, dtype=float), np.array(left), 10)
    assert found.tolist() == dealt


@given(some.lists(some.tuples(some.floats(0, 1), some.integers(0, 9)), min_size=1, max_size=9), some.integers(1, 30))
def test_every_place_is_dealt_and_no_domain_gives_more_than_it_has(domains, places):
    left = np.array([each for _, each in domains])
    weights = np.array([each for each, _ in domains]) + 1e-9
    places = min(places, int(left.sum()))
    dealt = dealt_places(weights / weights.sum(), np.zeros(len(left)), left, places)
    assert dealt.sum() == places and (dealt <= left).all() and (dealt >= 0).all()


def pool() -> list[Prompt]:
    topics = ["a b", "a/b", None, "zeta"]
    return [
        Prompt.asking(
            f"p{i}",
            f"{i}",
            topic=topics[i % 4],
            source="s" * (i % 2),
            labels={"level": float(i % 3)},
            columns={"c": i // 6},
        )
        for i in range(12)
    ]


def plan() -> SamplePlan:
    return replace(SamplePlan.sequential(12, 2), cluster=np.arange(12) * 7 % 11).drop({3: "too long", 7: "too long"})


@pytest.mark.parametrize("name", DOMAINS)
def test_every_planned_prompt_is_in_one_domain_with_a_plain_name(name):
    given = plan()
    made = DOMAINS[name].divide(given, pool())
    assert set(made.domain[given.rows].tolist()) == set(range(len(made.names)))
    assert made.domain[[3, 7]].tolist() == [-1, -1]
    assert len(set(made.names)) == len(made.names)
    assert not any("/" in name or " " in name for name in made.names)
    np.testing.assert_array_equal(made.domain, DOMAINS[name].divide(given, pool()).domain)


@pytest.mark.parametrize(
    ("label", "names", "first"),
    [
        ("topic", ("a_b", "a_b_2", "without", "zeta"), [0, 1, 2, -1]),
        ("source", ("s", "without"), [1, 0, 1, -1]),
        ("level", ("0", "1", "2"), [0, 1, 2, -1]),
        ("c", ("0", "1"), [0, 0, 0, -1]),
    ],
)
def test_a_label_divides(label, names, first):
    made = LabelDomains(label).divide(plan(), pool())
    assert (made.names, made.domain[:4].tolist()) == (names, first)


def test_random_domains_have_the_sizes_of_the_others_and_other_members():
    inner, made = (each.divide(plan(), pool()) for each in (LabelDomains(), RandomDomains(LabelDomains(), seed=1)))
    assert sorted(made.domain.tolist()) == sorted(inner.domain.tolist())
    assert made.domain.tolist() != inner.domain.tolist()


def test_domains_without_labels_or_clusters_are_refused():
    with pytest.raises(InputError, match=r"LabelDomains\.label is 'subject', and no prompt has it"):
        RandomDomains(LabelDomains("subject")).check(pool())
    with pytest.raises(InputError, match=r"ClusterDomains needs clusters, and data\.clustering is null"):
        ClusterDomains().divide(SamplePlan.sequential(12, 2), pool())
