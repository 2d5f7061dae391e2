"""What is said of clusters and steps: features, words, shares and trends, on numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.cards import (
    distinctive_words,
    log_odds,
    make_cards,
    nearest_to_centre,
    scored_words,
    strongest_features,
)
from saerl_lightning.plan_page.charts import (
    COLOURS,
    MARKS,
    NOTHING,
    batch_table,
    binned,
    cluster_colours,
    cluster_sizes,
    colour,
    difficulty_by_step,
    mark,
    pattern,
    quality_histogram,
)
from saerl_lightning.plan_page.page import batch_excerpts, headline
from saerl_lightning.plan_page.planned import MadePlan
from saerl_lightning.plan_page.projection import map_points, sample
from saerl_lightning.records import Prompt

# -- features ----------------------------------------------------------------------------------------------------------

ROWS = np.array([[2.0, 1, 0, 0], [4, 1, 0, 0], [0, 1, 3, 0], [0, 1, 3, 9], [0, 1, 3, 0], [0, 1, 0, 0]])
GROUP = np.array([0, 0, 1, 1, 1, -1])


@pytest.mark.parametrize("rows", [ROWS, csr_array(ROWS)])
def test_lift_is_the_mean_inside_over_the_mean_everywhere(rows):
    found = strongest_features(rows, GROUP, names=["a", "b", "c", "d"])
    [a] = found[0]  # b is as strong everywhere: lift 1
    assert (a.feature, a.effect, a.inside, a.everywhere) == ("a", pytest.approx(3.0), 1.0, pytest.approx(1 / 3))
    assert [(s.feature, s.effect) for s in found[1]] == [("c", pytest.approx(2.0)), ("d", pytest.approx(2.0))]
    assert found[1][1].inside == pytest.approx(1 / 3)


def test_a_feature_that_few_members_have_does_not_stand_for_the_cluster():
    rows = np.zeros((12, 2))
    rows[:10, 0], rows[0, 1] = 1.0, 50.0  # a tenth of the cluster has the second
    assert [s.feature for s in strongest_features(csr_array(rows), np.repeat([0, 1], [10, 2]))[0]] == ["#0"]


def test_signed_columns_are_compared_in_standard_deviations():
    rows = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    found = strongest_features(rows, np.array([0, 0, 1, 1]))
    assert [(s.feature, s.effect) for s in found[0]] == [("#0", pytest.approx(1.0))]
    assert found[1] == []  # it has less of the first and as much of the constant one


def test_examples_are_those_that_point_as_the_group_does():
    rows = csr_array(np.array([[0.0, 1], [5, 5], [1, 0.9], [9, 0]]))
    assert nearest_to_centre(rows, np.array([0, 1, 2]), most=2).tolist() == [1, 2]


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_that_set_a_group_apart():
    texts = ["the triangle \\frac{1}{2} number"] * 30 + ["a dice number"] * 30
    words = distinctive_words(texts, np.repeat([3, 7], 30))
    assert set(words) == {3, 7}
    assert set(words[3]) == {"triangle", "\\frac"} and words[7] == ["dice"]  # both have numbers; `the` tells nothing


def test_log_odds_worked_by_hand():
    """Two words, ten texts each; the prior is worth 500 texts, shared by how often the words are."""
    scores = log_odds(np.array([9.0, 1.0]), np.array([1.0, 9.0]))
    delta = np.log(259 / 251) - np.log(251 / 259)
    assert scores == pytest.approx(np.array([1, -1]) * delta / np.sqrt(1 / 259 + 1 / 251))


def test_the_prior_of_a_small_pool_weighs_no_more_than_the_pool():
    """Of eight texts four say `spell` and four `count`: with the 500 texts of a large pool, chance could have done it."""
    texts, group = ["spell it"] * 4 + ["count it"] * 4, np.repeat([0, 1], 4)
    assert distinctive_words(texts, group) == {0: ["spell"], 1: ["count"]}
    [(word, score)] = scored_words(texts, group)[0]
    # 4 and 0 texts of 4; the prior's eight texts give each word four.
    assert (word, score) == ("spell", pytest.approx(2 * np.log(8 / 4) / np.sqrt(1 / 8 + 1 / 4)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_cluster_of_a_small_pool_has_a_name(size):
    """Eight clusters of at most four prompts each; no word is beyond chance in the smallest."""
    subjects = ["triangle", "dice", "roots", "spelling", "legs", "sorting", "sheep", "divisor"]
    prompts = [
        Prompt.asking(f"p{c}-{i}", f"A {subject} and {i}" if c else "1 + 1", "1", topic="sums")
        for c, subject in enumerate(subjects)
        for i in range(size)
    ]
    pool = len(prompts)
    plan = replace(SamplePlan.sequential(pool, 1), cluster=np.repeat(np.arange(8), size))
    titles = {card.number: card.title for card in make_cards(MadePlan(prompts, plan, "d"))}
    assert titles == {0: "0 sums"} | {c: f"{c} {subject}" for c, subject in enumerate(subjects) if c}


@pytest.mark.parametrize("texts", [["12 + 3", "4"], ["word word", "word"], ["", ""]])
def test_texts_without_telling_words_give_none(texts):
    assert distinctive_words(texts, np.array([0, 1])) == {0: [], 1: []}


# -- steps -------------------------------------------------------------------------------------------------------------


def test_batches_belong_to_the_cluster_that_fills_half_of_them(planned):
    table = batch_table(planned.ledger)
    assert len(table.step) == 14 and (table.cluster >= 0).sum() == 14  # four rows of three clusters: one has two
    assert table.difficulty[0] == pytest.approx((2 + 3 + 4 + 5) / 4)
    shares, steps = table.shares([0, 1, 2], 1000)
    assert shares.sum(0) == pytest.approx(np.ones(14)) and steps.tolist() == list(range(1, 15))
    assert shares[:, 0].tolist() == [0.25, 0.25, 0.5]  # rows 2 to 5
    halved, first = table.shares([0, 1, 2], 7)
    assert halved[:, 0] == pytest.approx((shares[:, 0] + shares[:, 1]) / 2) and first.tolist() == [
        1,
        3,
        5,
        7,
        9,
        11,
        13,
    ]


def test_the_trend_follows_the_order(planned):
    steps, low, mean, high = batch_table(planned.ledger).trend()
    assert (steps[0], steps[-1]) == (1, 14)
    assert (np.diff(mean) > 0).all() and (low <= mean).all() and (mean <= high).all()
    assert mean[6] == pytest.approx(np.mean(range(26, 30)))  # a tenth of 14 steps is the step alone


@given(st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), max_size=60), st.integers(1, 20))
def test_binning_keeps_the_mean_of_what_it_joins(values, most):
    y = np.array(values, dtype=float)
    x, joined = binned(np.arange(len(y)), y, most)
    known = np.isfinite(y).sum()
    assert len(x) == len(joined) <= most or len(x) == known
    assert (np.diff(x) > 0).all()
    if known and known % len(x) == 0:
        assert joined.mean() == pytest.approx(y[np.isfinite(y)].mean(), abs=1e-9)


# -- the map -----------------------------------------------------------------------------------------------------------


def test_the_map_keeps_groups_together_and_is_the_same_every_time():
    draw = np.random.default_rng(0)
    rows = np.repeat(np.eye(3), 30, axis=0) @ draw.random((3, 40)) + 0.05 * draw.random((90, 40))
    points = map_points(csr_array(rows))
    assert points.shape == (90, 2) and np.abs(points).max() == pytest.approx(1.0)
    centres = points.reshape(3, 30, 2).mean(1)
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == np.repeat(range(3), 30)).mean() > 0.95
    assert (points == map_points(csr_array(rows))).all()


@pytest.mark.parametrize("rows", [np.zeros((5, 3)), np.ones((3, 1)), np.eye(4), np.ones((200, 4))])
def test_a_map_of_too_few_rows_has_finite_points(rows):
    for features in (rows, csr_array(rows)):
        points = map_points(features)
        assert points.shape == (len(rows), 2) and np.isfinite(points).all()


def test_a_sample_is_sorted_and_without_repeats():
    rows = sample(1000, 100)
    assert len(np.unique(rows)) == 100 and (np.diff(rows) > 0).all() and sample(7, 100).tolist() == list(range(7))


# -- colours -----------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as a deuteranope and a protanope sees it.
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


def lab(linear: np.ndarray) -> np.ndarray:
    """Oklab, in which equal distances look equal."""
    cone = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    mix = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return np.cbrt(np.clip(linear, 0, 1) @ cone.T) @ mix.T


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all", "deuteranopia", "protanopia"])
def test_colours_stay_apart_for_every_eye_and_on_white_and_black(seen):
    rgb = np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in COLOURS])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    papers = np.array([[1.0, 1, 1], [0.011, 0.013, 0.018]])  # white, and the page's dark panel
    shades = lab(np.vstack([linear, papers]) @ np.array(seen).T)
    apart = np.linalg.norm(shades[:, None] - shades, axis=2) + np.eye(len(shades))
    assert apart.min() > 0.07


def test_no_colour_is_taken_for_the_grey_of_those_without():
    codes = np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in (*COLOURS, NOTHING)])
    shades = lab(np.where(codes > 0.04045, ((codes + 0.055) / 1.055) ** 2.4, codes / 12.92))
    assert np.linalg.norm(shades[:-1] - shades[-1], axis=1).min() > 0.1


def test_categories_repeat_colours_only_with_another_mark():
    looks = {(colour(k), mark(k)) for k in range(63)}
    assert len(looks) == 63 == len(COLOURS) * len(MARKS)
    assert len({(colour(k), pattern(k)) for k in range(63)}) == 63
    assert colour(-1) == NOTHING not in COLOURS and mark(-1) == MARKS[0]


@pytest.mark.parametrize("clusters", [1, 8, 9, 60])
def test_no_two_clusters_have_one_colour(clusters):
    """The largest have colours of their own, and the others share the grey of those without."""
    numbers = [3 * k for k in reversed(range(clusters))]  # largest first: not the order of the numbers
    shades = cluster_colours(numbers)
    own = [shade for shade in shades.values() if shade != NOTHING]
    assert len(set(own)) == len(own) == min(clusters, 9)
    assert list(shades) == numbers and all(shades[number] == NOTHING for number in numbers[9:])


def test_the_chart_of_many_clusters_draws_the_largest_by_name_and_the_others_together():
    """60 clusters of 4 prompts, a batch each: nine lines, and 51 marks under one name."""
    rows = np.arange(240)
    plan = SamplePlan(rows, 4, rows // 4, rows / 240, np.zeros(240), np.full(240, -1), {})
    prompts = [Prompt.asking(f"p{i}", f"What is {i}?", "1") for i in rows]
    ledger = MadePlan(prompts, plan, "d").ledger
    traces = {trace.name: trace for trace in difficulty_by_step(ledger, {k: f"c{k}" for k in range(59, -1, -1)}).data}
    assert {name for name in traces if name.startswith("c")} == {f"c{k}" for k in range(51, 60)}
    assert len(traces["smaller clusters"].x) == 51 and traces["smaller clusters"].marker.color == NOTHING
    lines = [trace.line.color for name, trace in traces.items() if name.startswith("c")]
    assert sorted(lines) == sorted(COLOURS)
    names = list(traces)
    assert names.index("all prompts") < names.index("c59")  # the heavy line lies below the marks


# -- cards and sentences -----------------------------------------------------------------------------------------------


def test_cards_describe_the_clusters(planned):
    cards = {card.number: card for card in make_cards(planned)}
    assert {number: card.size for number, card in cards.items()} == {0: 19, 1: 19, 2: 20}  # rows 0 and 1 were dropped
    assert cards[1].words[:1] and set(cards[1].words) == {"polynomial", "roots", "degree"}
    assert cards[1].features[0].feature == "#1" and cards[1].features[0].inside == 1.0
    assert cards[1].topics == [("algebra", 19)] and cards[2].topics == [("", 20)]
    assert cards[0].difficulty == (pytest.approx(30.0), 3.0, 57.0)
    assert all(example.topic == "algebra" for example in cards[1].examples) and len(cards[1].examples) == 3
    without = make_cards(MadePlan(planned.prompts, planned.plan, planned.digest))
    assert [card.features for card in without] == [[], [], []]
    middle = next(card for card in without if card.number == 0).examples
    assert [example.uid for example in middle] == ["p27", "p30", "p33"]


def test_batch_excerpts_show_the_first_the_middle_and_the_last_batch(planned):
    shown = batch_excerpts(planned)
    assert [(g.when, g.step) for g in shown] == [("At the start", 1), ("Half way", 7), ("At the end", 14)]
    assert [difficulty for *_, difficulty in shown[0].prompts] == [2, 3, 4, 5]


def test_the_headline_is_true_of_the_plan(planned):
    assert headline(planned) == [
        "Of 60 prompts, 2 (3.3 %) are dropped and 2 fill no whole batch; 56 are served, in 14 steps of 4 prompts.",
        "3 clusters hold between 19 and 20 prompts each.",
        "The first tenth of training is rated 3.50 on average, the last tenth 55.5.",
        "Mixing moved 3.6 % of the served prompts to another step.",
    ]


# -- charts ------------------------------------------------------------------------------------------------------------


def test_the_filters_histogram_counts_what_reached_the_filter(planned):
    plan = replace(planned.plan, rows=planned.plan.rows[1:], dropped={**planned.plan.dropped, 2: "too long"})
    ledger = replace(planned, plan=plan).ledger
    kept, dropped, cut = quality_histogram(ledger, planned.operations[0].reason, cut=0.025).data
    assert (kept.y.sum(), dropped.y.sum()) == (57, 2)
    assert (dropped.x[dropped.y > 0] < 0.025).all() and cut.x == (0.025, 0.025)


def test_every_planned_prompt_stands_in_a_bar(planned):
    names = {2: "2 dice", 0: "0 triangle", 1: "1 roots"}
    bars = cluster_sizes(planned.ledger, names).data
    assert {bar.name: list(bar.x) for bar in bars} == {
        "no topic": [20, 0, 0], "geometry &lt;b&gt;": [0, 19, 0], "algebra": [0, 0, 19],
    }  # fmt: skip
    assert list(bars[0].y) == list(names.values())
