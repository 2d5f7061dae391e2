"""Slots that are on and do nothing say so; prompts that lack what an operation needs are refused before features are made."""

import logging
import re

import numpy as np
import pytest

from saerl_lightning.data.callback import DataCallback
from saerl_lightning.data.clustering import (
    BalancedServing,
    KMeansClusters,
    PermutedClusters,
    RandomClusters,
    SameSizeClusters,
    TopicClusters,
)
from saerl_lightning.data.curriculum import EasyToHard, LabelOrder, LengthOrder, ShuffledOrder, WithoutFeatures
from saerl_lightning.data.diverse import DiverseBatches
from saerl_lightning.data.filtering import LengthFilter, MatchedFilter, QualityFilter, RandomFilter
from saerl_lightning.data.mixing import FullMixing, TailMixing
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.planning import doubtful_slots, idle_slots, make_plan
from saerl_lightning.data.probes import ElasticNetProbe, Prediction, RidgeProbe
from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.page import absences
from saerl_lightning.plan_page.tables import overview
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import SignalSource
from saerl_lightning.training.tables.plan_table import planned_run
from tests.data.served_prompts import TOKENIZER

N = 24
LASSO = ElasticNetProbe(l1_ratios=(1.0,), folds=2)
RIDGE = RidgeProbe(alphas=(1.0,), folds=2)


def pool(alike: bool = False) -> list[Prompt]:
    """Prompts with a topic, a length and labels, of their own or all the same."""
    return [
        Prompt.asking(
            f"p{i}",
            f"{i:02d}" + "x" * (0 if alike else i),
            "1",
            topic="t" if alike else f"t{i % 3}",
            labels={"difficulty": 1.0 if alike else float(i), "quality": float(i % 2)},
        )
        for i in range(N)
    ]


def rows() -> np.ndarray:
    """One column tells the labels, one is noise."""
    return np.stack([np.arange(N) + 50.0 * (np.arange(N) % 2), np.random.default_rng(0).standard_normal(N)], axis=1)


class Rows(SignalSource):
    """Rows made before; counts how often it is asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.asked = 0

    def features(self, prompts):
        self.asked += 1
        return self.values

    def fingerprint(self, prompts):
        return "rows"


BUSY = {
    "quality filter": QualityFilter(probe=RIDGE, drop=0.3),
    "random filter": RandomFilter(fraction=0.1),
    "length filter": LengthFilter(fraction=0.1),
    "matched filter": MatchedFilter(QualityFilter(probe=RIDGE, drop=0.3)),
    "k-means": KMeansClusters(clusters=2),
    "topics": TopicClusters(),
    "easy to hard": EasyToHard(probe=RIDGE),
    "without features": WithoutFeatures(EasyToHard(probe=RIDGE), count=1),
    "label": LabelOrder(),
    "tails": TailMixing(fraction=0.125),
    "full": FullMixing(),
    "diverse": DiverseBatches(window=2),
}
# What it says -> operations that do nothing with 3 batches of 4, or of the given size.
ALIKE, NO_WEIGHT = "all prompts are rated alike", "its probe found no feature to go by (all its weights are 0)"
IDLE = {
    "no prompt is dropped": [QualityFilter(probe=RIDGE, drop=0.0), RandomFilter(fraction=0.02), LengthFilter(0.0)],
    "all batches are of one cluster": [BalancedServing()],
    "all prompts are in one cluster": [KMeansClusters(clusters=1), RandomClusters(clusters=1)],
    "its probe has no feature left to go by": [WithoutFeatures(EasyToHard(probe=RIDGE), count=2)],
    "no prompt moves to another batch (6 of 4 prompts): a share of 0.1 must be half a prompt of a batch or more": [
        TailMixing()
    ],
}
DEAD = {  # features that are the same for all prompts
    "quality filter": QualityFilter(probe=LASSO),
    "matched filter": MatchedFilter(QualityFilter(probe=RIDGE)),
    "easy to hard": EasyToHard(probe=RIDGE),
    "shuffled": ShuffledOrder(EasyToHard(probe=LASSO)),
}


def idle(operation: DataCallback, prompts: list[Prompt], features: np.ndarray, batch_size: int = 4) -> str:
    operation.apply(SamplePlan.sequential(len(prompts), batch_size), prompts, features)
    return operation.idle()


@pytest.mark.parametrize("operation", BUSY.values(), ids=BUSY)
def test_an_operation_that_does_something_says_nothing(operation):
    assert operation.idle() == ""
    assert idle(operation, pool(), rows()) == ""


CASES = [(why, operation) for why, operations in IDLE.items() for operation in operations]


@pytest.mark.parametrize(("why", "operation"), CASES, ids=[f"{why[:30]} {type(each).__name__}" for why, each in CASES])
def test_an_operation_that_does_nothing_says_why(why, operation):
    assert idle(operation, pool(), rows()) == why


def test_an_operation_may_be_idle_because_of_the_data_or_the_batch():
    assert idle(TopicClusters(), pool(alike=True), rows()) == "all prompts are in one cluster"
    assert idle(LabelOrder(), pool(alike=True), rows()) == idle(LengthOrder(), pool(alike=True), rows()) == ALIKE
    for mixing in (FullMixing(), DiverseBatches()):
        assert idle(mixing, pool(), rows(), batch_size=N).startswith("no prompt moves to another batch")
    assert idle(TailMixing(), pool(), rows(), batch_size=5) == ""


@pytest.mark.parametrize("operation", DEAD.values(), ids=DEAD)
def test_a_probe_without_a_weight_is_named_whatever_its_ratings_do(operation):
    assert idle(operation, pool(), np.ones((N, 3))) == NO_WEIGHT


def test_fit_and_plan_warn_in_one_line_a_slot(caplog):
    class Pool(PromptSource):
        def load(self):
            return pool()

    data = PromptDataModule(
        Pool(), batch_size=4, curriculum=LengthOrder(), mixing=TailMixing(), filtering=LengthFilter(0)
    )
    data.tokenizer = TOKENIZER
    with caplog.at_level(logging.WARNING, "saerl_lightning"):
        data.set_up_plan()
    assert caplog.messages == [
        "warning: data.filtering: LengthFilter is on, but does nothing: no prompt is dropped",
        "warning: data.mixing: TailMixing is on, but does nothing: no prompt moves to another batch (6 of 4 prompts): "
        "a share of 0.1 must be half a prompt of a batch or more",
    ]
    assert idle_slots(data.operations).keys() == {"filtering", "mixing"}


# A column of noise tells neither label, two columns with the labels themselves tell both.
GUESSING = {
    "quality filter": (QualityFilter(probe=RIDGE), "AUC", "0.5"),
    "matched filter": (MatchedFilter(QualityFilter(probe=RIDGE)), "AUC", "0.5"),
    "easy to hard": (EasyToHard(probe=RIDGE), "Spearman's correlation", "0"),
}


@pytest.mark.parametrize(("operation", "score", "chance"), GUESSING.values(), ids=GUESSING)
def test_a_probe_at_chance_is_named_with_its_numbers_and_what_to_do(operation, score, chance):
    assert operation.doubt() == ""
    assert idle(operation, pool(), np.stack([np.arange(N), np.arange(N) % 2], axis=1) * 1.0) == "" == operation.doubt()
    assert idle(operation, pool(), np.random.default_rng(1).standard_normal((N, 1))) == ""
    number = r"-?\d\.\d{3}"
    ends = rf"{score} is {number}, 95 % interval {number} to {number}, and chance is {re.escape(chance)}; measure more labels"
    assert re.fullmatch(rf"its probe is no better than chance: {ends}, .* or leave the slot empty", operation.doubt())


@pytest.mark.parametrize(
    ("name", "low", "high", "doubted"),
    [
        ("auc", 0.38, 0.54, True), ("auc", 0.5, 0.6, True), ("auc", 0.51, 0.6, False), ("auc", 0.2, 0.4, True),
        ("spearman", -0.01, 0.3, True), ("spearman", 0.01, 0.3, False), ("spearman", np.nan, np.nan, False),
    ],
)  # fmt: skip
def test_an_interval_that_holds_chance_is_doubted(name, low, high, doubted):
    made = Prediction(
        np.zeros(1), np.zeros(1, int), {"spearman": Interval(0.9, 0.8, 0.95), name: Interval(0.4, low, high)}, 1
    )
    assert bool(made.doubt) == doubted


def test_the_plan_warns_of_a_probe_at_chance(caplog):
    class Pool(PromptSource):
        def load(self):
            return pool()

    noise = Rows(np.random.default_rng(1).standard_normal((N, 1)))
    data = PromptDataModule(Pool(), batch_size=4, signals=noise, filtering=QualityFilter(probe=RIDGE))
    data.tokenizer = TOKENIZER
    with caplog.at_level(logging.WARNING, "saerl_lightning"):
        data.set_up_plan()
    (said,) = caplog.messages
    assert said.startswith("warning: data.filtering: QualityFilter: its probe is no better than chance: AUC is 0.")
    assert said.removeprefix("warning: data.") == f"filtering: {doubtful_slots(data.operations)['filtering']}"
    run = planned_run(data)
    page = dict(absences(run))["filtering"]
    assert said.partition("QualityFilter: ")[2] in page
    assert any(said.endswith(row[1]) for row in overview(run).rows)


NEEDY = {
    "filtering": [QualityFilter(), MatchedFilter(LengthFilter()), MatchedFilter(QualityFilter())],
    "clustering": [TopicClusters(), SameSizeClusters(TopicClusters()), PermutedClusters(RandomClusters())],
    "curriculum": [EasyToHard(), LabelOrder(), ShuffledOrder(LabelOrder()), WithoutFeatures(EasyToHard(), count=1)],
}


@pytest.mark.parametrize(
    ("slot", "operation"),
    [(slot, each) for slot, all_ in NEEDY.items() for each in all_],
    ids=lambda x: type(x).__name__,
)
def test_a_label_that_no_prompt_has_is_missed_before_features_are_computed(slot, operation):
    """Features of a real pool take minutes to hours; an earlier operation reads them here."""
    bare = [Prompt.asking(f"p{i}", f"What is {i}?", "1") for i in range(N)]
    signals = Rows(rows())
    operations = {"reader": KMeansClusters(clusters=2), slot: operation}
    with pytest.raises(InputError, match="no prompt"):
        make_plan(bare, {}, 4, 0, signals, operations)
    assert signals.asked == 0


@pytest.mark.parametrize("operation", [QualityFilter(label="difficulty"), EasyToHard()], ids=["filter", "order"])
@pytest.mark.parametrize(
    ("labels", "message"), [([1.0] * N, "all 24 labels are 1"), ([1.0, 2.0, 3.0], "3 labels for 5 folds")]
)
def test_labels_that_no_probe_can_learn_from_are_missed_before_features(operation, labels, message):
    prompts = [
        Prompt(p.uid, p.messages, "1", labels={"difficulty": labels[i]} if i < len(labels) else {})
        for i, p in enumerate(pool())
    ]
    signals = Rows(rows())
    with pytest.raises(InputError, match=message):
        make_plan(prompts, {}, 4, 0, signals, {"any": operation})
    assert signals.asked == 0


def test_a_label_that_some_planned_prompts_lack_is_missed_before_features_too_unless_a_filter_may_drop_them():
    half = [Prompt(p.uid, p.messages, "1", labels=p.labels if i % 2 else {}) for i, p in enumerate(pool())]
    signals = Rows(rows())
    operations = {"clustering": KMeansClusters(clusters=2), "curriculum": LabelOrder()}
    with pytest.raises(InputError, match="12 of 24 planned prompts lack it"):
        make_plan(half, {}, 4, 0, signals, operations)
    assert signals.asked == 0

    class Labelled(LengthFilter):
        def keep(self, plan, prompts, features):
            return np.array([bool(prompt.labels) for prompt in prompts])

    assert len(make_plan(half, {}, 4, 0, signals, {"filtering": Labelled(), **operations}).rows) == 12
