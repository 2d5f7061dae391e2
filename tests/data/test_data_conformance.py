"""What every shipped operation on the plan promises. A new one without an example below fails."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

import saerl_lightning.data
from saerl_lightning.data.callback import Clustering, Curriculum, DataCallback, Filtering, Mixing, Online
from saerl_lightning.data.clustering import KMeansClusters, TopicClusters
from saerl_lightning.data.curriculum import EasyToHard, LengthOrder
from saerl_lightning.data.filtering import LengthFilter, QualityFilter
from saerl_lightning.data.probes import RidgeProbe, TreeProbe
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt
from tests import shipped_classes

N = 57

# One or more ways to configure each class, by its name.
RIDGE, TREES = RidgeProbe(alphas=(1.0, 10.0)), TreeProbe(trees=5)
K_MEANS = KMeansClusters(clusters=3)
EXAMPLES = {
    "QualityFilter": [{}, {"probe": TREES, "threshold": 0.5}, {"labels": 20, "drop": 0.3}],
    "RandomFilter": [{}, {"fraction": 0.5, "seed": 7}, {"fraction": 0.0}],
    "LabelFilter": [{"label": "level"}, {"label": "level", "fraction": 0.5}],
    "LengthFilter": [{}, {"fraction": 0.3}],
    "MatchedFilter": [{"inner": QualityFilter(drop=0.3)}, {"inner": LengthFilter(), "label": "level", "bins": 3}],
    "KMeansClusters": [{"clusters": 3}, {"clusters": 4, "components": 2}, {"clusters": 3, "minibatch_above": 10}],
    "TopicClusters": [{}],
    "RandomClusters": [{}, {"clusters": 3}],
    "SameSizeClusters": [{"inner": K_MEANS}, {"inner": TopicClusters(), "seed": 3}],
    "PermutedClusters": [{"inner": K_MEANS}, {"inner": TopicClusters(), "label": "level", "bins": 2}],
    "EasyToHard": [{}, {"probe": TREES, "labels": None}, {"probe": RIDGE, "labels": 20, "descending": True}],
    "LabelOrder": [{}, {"label": "level", "descending": True}],
    "LengthOrder": [{}],
    "ShuffledOrder": [{"inner": EasyToHard(probe=RIDGE)}, {"inner": LengthOrder(), "seed": 3}],
    "WithoutFeatures": [
        {"inner": EasyToHard(probe=RIDGE), "count": 2},
        {"inner": EasyToHard(probe=RIDGE, descending=True), "count": 3, "random": True},
    ],
    "TailMixing": [{}, {"fraction": 0.5}],
    "FullMixing": [{}, {"window": 3}],
    "BalancedServing": [{}],
    "DiverseBatches": [{}, {"window": 2, "components": 3}],
}


def shipped() -> dict[str, type[DataCallback]]:
    found = shipped_classes.shipped(DataCallback, saerl_lightning.data)
    # Those that decide online have a suite of their own, tests/online.
    return {name: cls for name, cls in found.items() if not issubclass(cls, Online)}


CASES = [(name, arguments) for name, examples in EXAMPLES.items() for arguments in examples]


def pool() -> list[Prompt]:
    random = np.random.default_rng(0)
    return [
        Prompt.asking(
            uid=f"p{i}",
            question="word " * int(random.integers(1, 9)),
            answer=str(i),
            topic=[None, "algebra", "geometry", "number theory"][i % 4],
            labels={"difficulty": float(random.integers(5)), "quality": float(random.random()), "level": float(i % 3)},
        )
        for i in range(N)
    ]


def features() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N, 6))


def sparse_features() -> csr_array:
    rows = np.maximum(features(), 0)
    rows[5] = 0  # a prompt without a single active feature
    return csr_array(rows)


def plan() -> SamplePlan:
    """A plan that other operations have worked on: shuffled, some dropped, rated and mixed."""
    random = np.random.default_rng(2)
    start = SamplePlan.sequential(N, 8).reorder(random.permutation(N)).drop({3: "too long", 11: "too long"})
    return SamplePlan(
        start.rows, 8, np.arange(N) % 3, random.random(N), random.random(N), start.mixed_from, start.dropped
    )


def columns(given: SamplePlan) -> dict[str, list]:
    return {name: np.asarray(value).tolist() for name, value in given.ledger().items()} | {"rows": given.rows.tolist()}


def assert_same(a: SamplePlan, b: SamplePlan) -> None:
    np.testing.assert_equal(columns(a), columns(b))  # NaN equals NaN here


def test_every_shipped_operation_has_an_example():
    assert shipped().keys() == EXAMPLES.keys()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_same_input_gives_the_same_output(name, arguments):
    cls = shipped()[name]
    operation = cls(**arguments)
    once = operation.apply(plan(), pool(), features())
    assert_same(once, operation.apply(plan(), pool(), features()))
    sparse = operation.apply(plan(), pool(), sparse_features())
    assert_same(sparse, cls(**arguments).apply(plan(), pool(), sparse_features()))
    np.random.seed(5)  # noqa: NPY002 - the global random state must not matter
    assert_same(once, cls(**arguments).apply(plan(), pool(), features()))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_input_is_left_as_it_was(name, arguments):
    given, prompts, rows = plan(), pool(), features()
    kept = deepcopy((given, prompts, rows))
    for array in (given.rows, given.cluster, given.difficulty, given.quality, given.mixed_from, rows):
        array.setflags(write=False)
    shipped()[name](**arguments).apply(given, prompts, rows)
    assert_same(given, kept[0])
    assert prompts == kept[1]
    assert np.array_equal(rows, kept[2])


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_no_prompt_is_invented_repeated_or_lost_without_a_reason(name, arguments):
    given = plan()
    operation = shipped()[name](**arguments)
    result = operation.apply(given, pool(), features())
    served = result.rows.tolist()
    assert len(set(served)) == len(served)
    assert set(served) | set(result.dropped) == set(range(N))
    assert not set(served) & set(result.dropped)
    assert all(result.dropped.values())
    assert given.dropped.items() <= result.dropped.items()
    assert result.batch_size == given.batch_size
    if not isinstance(operation, Filtering):
        assert sorted(served) == sorted(given.rows.tolist())


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_state_survives_a_checkpoint(name, arguments, tmp_path):
    """What a checkpoint holds of an operation at work is read without running code, and another one goes on from it."""
    operation, other = shipped()[name](**arguments), shipped()[name](**arguments)
    operation.apply(plan(), pool(), features())
    torch.save(operation.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    np.testing.assert_equal(other.state_dict(), operation.state_dict())
    assert_same(other.apply(plan(), pool(), features()), operation.apply(plan(), pool(), features()))


REPORTED = {
    Filtering: {"kept", "dropped"},
    Clustering: {"clusters", "size_min", "size_median", "size_max", "nmi", "ami", "ari"},
}
REPORTED |= {Curriculum: {"spearman_length"}, Mixing: {"share"}}
SCORES = {f"probe/{score}{end}" for score in ("r2", "pearson", "spearman") for end in ("", "_low", "_high")}
ROBBED = {"without/columns", "without/tau"}
PROBED = {"probe/labels", "probe/nonzero", *SCORES}


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_it_reports_itself_in_finite_numbers(name, arguments):
    operation = shipped()[name](**arguments)
    assert operation.metrics() == {}
    operation.apply(plan(), pool(), features())
    metrics = operation.metrics()
    assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
    extra = {"balanced"} if name == "BalancedServing" else {"share", "logdet", "logdet_before"}
    expected = next((names for role, names in REPORTED.items() if isinstance(operation, role)), extra)
    learned = {"QualityFilter": {"threshold"} | PROBED, "EasyToHard": PROBED, "WithoutFeatures": ROBBED}.get(
        name, set()
    )
    assert metrics.keys() == expected | learned
