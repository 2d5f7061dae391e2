"""What every shipped operation on the plan promises. A new one without an example below fails."""

import importlib
import inspect
import pkgutil
from copy import deepcopy

import numpy as np
import pytest

import saerl_lightning.data
from saerl_lightning.data.callback import DataCallback, Filtering
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt

N = 57

# One or more ways to configure each class, by its name.
EXAMPLES = {
    "RandomFilter": [{}, {"fraction": 0.5, "seed": 7}, {"fraction": 0.0}],
    "TopicClusters": [{}],
    "RandomClusters": [{}, {"clusters": 3}],
    "LabelOrder": [{}, {"label": "level", "descending": True}],
    "LengthOrder": [{}],
    "TailMixing": [{}, {"fraction": 0.5}],
}


def shipped() -> dict[str, type[DataCallback]]:
    for module in pkgutil.iter_modules(saerl_lightning.data.__path__, "saerl_lightning.data."):
        importlib.import_module(module.name)
    found, pending = {}, [DataCallback]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if not inspect.isabstract(cls) and cls.__module__.startswith("saerl_lightning."):
            found[cls.__name__] = cls
    return found


CASES = [(name, arguments) for name, examples in EXAMPLES.items() for arguments in examples]


def pool() -> list[Prompt]:
    random = np.random.default_rng(0)
    return [
        Prompt(
            uid=f"p{i}",
            messages=({"role": "user", "content": "word " * int(random.integers(1, 9))},),
            answer=str(i),
            topic=[None, "algebra", "geometry", "number theory"][i % 4],
            labels={"difficulty": float(random.integers(5)), "quality": float(random.random())}
            | ({"level": float(i % 3)} if i % 5 else {}),
        )
        for i in range(N)
    ]


def features() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N, 6))


def plan() -> SamplePlan:
    """A plan that other operations have worked on: shuffled, some dropped, rated and mixed."""
    random = np.random.default_rng(2)
    start = SamplePlan.sequential(N, 8).reorder(random.permutation(N)).drop({3: "too long", 11: "too long"})
    return SamplePlan(
        start.rows, 8, np.arange(N) % 3, random.random(N), random.random(N), start.mixed_from, start.dropped
    )


def columns(given: SamplePlan) -> dict[str, list]:
    return {name: np.asarray(value).tolist() for name, value in given.ledger().items()} | {"rows": given.rows.tolist()}


def same(a: SamplePlan, b: SamplePlan) -> None:
    np.testing.assert_equal(columns(a), columns(b))  # NaN equals NaN here


def test_every_shipped_operation_has_an_example():
    assert shipped().keys() == EXAMPLES.keys()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_same_input_gives_the_same_output(name, arguments):
    cls = shipped()[name]
    operation = cls(**arguments)
    once = operation.apply(plan(), pool(), features())
    same(once, operation.apply(plan(), pool(), features()))
    np.random.seed(5)  # noqa: NPY002 - the global random state must not matter
    same(once, cls(**arguments).apply(plan(), pool(), features()))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_input_is_left_as_it_was(name, arguments):
    given, prompts, rows = plan(), pool(), features()
    kept = deepcopy((given, prompts, rows))
    for array in (given.rows, given.cluster, given.difficulty, given.quality, given.mixed_from, rows):
        array.setflags(write=False)
    shipped()[name](**arguments).apply(given, prompts, rows)
    same(given, kept[0])
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
def test_state_survives_a_round_trip(name, arguments):
    operation, other = shipped()[name](**arguments), shipped()[name](**arguments)
    other.load_state_dict(operation.state_dict())
    np.testing.assert_equal(other.state_dict(), operation.state_dict())
    assert all(isinstance(value, float) for value in operation.metrics().values())
