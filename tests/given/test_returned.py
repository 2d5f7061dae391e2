"""What the methods of a user's operation or signal source return: converted where it means numbers, else refused."""

from copy import copy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from saerl_lightning.data.callback import Clustering, Curriculum, DataCallback, Filtering, Mixing
from saerl_lightning.data.clustering import PermutedClusters, SameSizeClusters
from saerl_lightning.data.curriculum import ShuffledOrder
from saerl_lightning.data.filtering import MatchedFilter
from saerl_lightning.data.planning import make_plan
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import CachedSignals
from saerl_lightning.signals.source import SignalSource


def spoilt(plan, **fields):
    """A plan as `dataclasses.replace` makes it for users, whose types nobody looks at."""
    made = copy(plan)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


PROMPTS = [Prompt.asking(f"p{i}", f"What is {i}?", str(i), labels={"difficulty": float(i)}) for i in range(6)]


class Rated(Curriculum):
    def __init__(self, given):
        self.given = given

    def difficulty(self, plan, prompts, features):
        return self.given


class Grouped(Clustering):
    def __init__(self, given):
        self.given = given

    def label(self, plan, prompts, features):
        return self.given


class Kept(Filtering):
    def __init__(self, kept, quality=None, why="mine"):
        self.kept, self.rated, self.why = kept, quality, why

    def quality(self, plan, prompts, features):
        return np.full(6, np.nan) if self.rated is None else self.rated

    def keep(self, plan, prompts, features):
        return self.kept

    def reason(self):
        return self.why


class Moved(Mixing):
    def __init__(self, given):
        self.given = given

    def blend(self, batches):
        return self.given


class Own(DataCallback):
    def __init__(self, make):
        self.make = make

    def apply(self, plan, prompts, features):
        return self.make(plan)


class Reading(Own):
    needs_features = True


class Read(SignalSource):
    def __init__(self, given, key="key"):
        self.given, self.key = given, key

    def features(self, prompts):
        return self.given

    def fingerprint(self, prompts):
        return self.key


def planned(operation, signals=None):
    return make_plan(PROMPTS, {}, 2, None, signals, {"slot": operation})


FALLING = [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "given",
    [
        FALLING,
        tuple(FALLING),
        np.array(FALLING),
        np.array(FALLING, dtype=np.uint8),
        pd.Series(FALLING),
        torch.tensor(FALLING),
        torch.tensor(FALLING, dtype=torch.bfloat16, requires_grad=True),
        [5.0, 4.0, 3.0, 2.0, 1.0, np.int64(0)],
    ],
)
def test_numbers_of_any_kind_are_ratings(given):
    """Kept as float64, in which NaN means no rating: the log of a step takes their mean."""
    plan = planned(Rated(given))
    assert plan.difficulty.dtype == np.float64 and plan.difficulty.tolist() == FALLING
    assert plan.rows.tolist() == [5, 4, 3, 2, 1, 0]
    assert planned(Kept([True] * 6, given)).quality.tolist() == FALLING


def test_none_and_nan_are_no_rating():
    assert np.isnan(planned(Rated([1, None, 3, float("nan"), 5, 6])).difficulty).tolist() == [0, 1, 0, 1, 0, 0]


def test_a_view_of_what_an_operation_keeps_is_not_shared():
    kept = np.arange(6.0)
    planned(Rated(kept)).difficulty[0] = 9
    assert kept[0] == 0


@pytest.mark.parametrize(
    "given", [[0, 1, 0, 1, 0, 1], np.array([0.0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 0, 1])]
)
def test_whole_numbers_of_any_kind_are_clusters(given):
    plan = planned(Grouped(given))
    assert plan.cluster.dtype == np.int64 and plan.cluster.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("given", [[0, 1, 1, 0, 1, 1], np.array([False, True, True, False, True, True])])
def test_truths_of_any_kind_are_marks(given):
    assert planned(Kept(given)).dropped == {0: "mine", 3: "mine"}


def test_batches_may_be_lists():
    assert planned(Moved([[2, 1], [0, 3], [4, 5]])).rows.tolist() == [2, 1, 0, 3, 4, 5]


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (Rated([1, 2, 3]), r"Rated\.difficulty returned a list of shape \(3,\); return 6 numbers, one a prompt"),
        (Rated(np.ones((6, 1))), r"Rated\.difficulty returned an ndarray of shape \(6, 1\); return 6 numbers"),
        (Rated(None), r"Rated\.difficulty returned None; return 6 numbers"),
        (Rated(3.0), r"Rated\.difficulty returned 3\.0; return 6 numbers"),
        (Rated({"p0": 1.0}), r"Rated\.difficulty returned a dict; return 6 numbers"),
        (Rated(x for x in FALLING), r"Rated\.difficulty returned a generator; return 6 numbers"),
        (Rated(["easy"] * 6), r"Rated\.difficulty returned 'easy' for prompt 'p0'; return 6 numbers"),
        (Rated(["1"] * 6), r"Rated\.difficulty returned '1' for prompt 'p0'"),
        (Rated([[1], [1, 2]]), r"Rated\.difficulty returned a list of unequal parts"),
        (Rated(np.ones(6) * 1j), r"Rated\.difficulty returned an ndarray of complex128"),
        (Rated([1, 2, np.inf, 4, 5, 6]), r"Rated\.difficulty returned inf for prompt 'p2'; .*NaN for no rating"),
        (Kept([True] * 6, [1, 2]), r"Kept\.quality returned a list of shape \(2,\); return 6 numbers"),
        (Kept([0, 4, 5]), r"Kept\.keep returned a list of shape \(3,\); return 6 truths"),
        (Kept(np.arange(6)), r"Kept\.keep returned 2 for prompt 'p2'; return 6 truths, .*True keeps it"),
        (Kept(None), r"Kept\.keep returned None"),
        (Kept([False] * 3 + [True] * 3, why=None), r"Kept\.reason returned None; return a text"),
        (Grouped(["a"] * 6), r"Grouped\.label returned 'a' for prompt 'p0'; return 6 whole numbers .*np\.unique"),
        (Grouped([0, 1, 0.5, 1, 0, 1]), r"Grouped\.label returned 0\.5 for prompt 'p2'"),
        (Grouped([0, 1, np.nan, 1, 0, 1]), r"Grouped\.label returned nan for prompt 'p2'"),
        (Grouped([0, -2, 0, 1, 0, 1]), r"Grouped\.label returned -2 for prompt 'p1'"),
        (Grouped([0, 1]), r"Grouped\.label returned a list of shape \(2,\)"),
        (Moved([0, 1, 2, 3, 4, 5]), r"Moved\.blend returned a list of shape \(6,\); return .*shape \(3, 2\)"),
        (Moved(None), r"Moved\.blend returned None"),
        (Moved([[0, 0], [2, 3], [4, 5]]), r"Moved\.blend .* row 0 2 times; return each row once"),
        (Moved([[0, 1], [2, 3], [4, 9]]), r"Moved\.blend .* row 9, .*; return each row once"),
        (Own(lambda plan: plan.rows), r"Own\.apply returned an ndarray; return a SamplePlan"),
        (Own(lambda plan: None), r"Own\.apply returned None; return a SamplePlan"),
        (Own(lambda plan: spoilt(plan, rows=[0, 1])), r"Own\.apply returned a plan whose rows are a list"),
        (Own(lambda plan: spoilt(plan, rows=np.array([0, 0, 1]))), r"Own\.apply .* row 0 2 times"),
        (Own(lambda plan: spoilt(plan, rows=np.array([0, 6]))), r"Own\.apply .* row 6, .*"),
        (
            Own(lambda plan: spoilt(plan, rows=np.array([0, 1]))),
            r"Own\.apply returned a plan with no row 2.*plan\.drop",
        ),
        (Own(lambda plan: spoilt(plan, difficulty=[1, 2])), r"Own\.difficulty|Own\.apply .*difficulty"),
        (Own(lambda plan: spoilt(plan, cluster=np.zeros(2))), r"Own\.apply .*cluster"),
    ],
)
def test_anything_else_is_refused_by_class_and_method(operation, says):
    with pytest.raises(InputError, match=says) as refusal:
        planned(operation)
    assert "\n" not in str(refusal.value)


def test_an_order_of_an_operation_that_reorders_is_judged_too():
    with pytest.raises(InputError, match="permutation"):
        planned(Own(lambda plan: plan.reorder(np.array([0, 1]))))


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (ShuffledOrder(Rated([1])), r"Rated\.difficulty returned a list of shape \(1,\)"),
        (SameSizeClusters(Grouped([1])), r"Grouped\.label returned a list of shape \(1,\)"),
        (PermutedClusters(Grouped([1])), r"Grouped\.label returned a list of shape \(1,\)"),
        (MatchedFilter(Kept([1])), r"Kept\.keep returned a list of shape \(1,\)"),
        (MatchedFilter(Kept([1] * 6, [1])), r"Kept\.quality returned a list of shape \(1,\)"),
    ],
)
def test_a_control_judges_the_operation_inside(control, says):
    with pytest.raises(InputError, match=says):
        planned(control)


def test_a_control_takes_lists_of_the_operation_inside():
    assert sorted(planned(ShuffledOrder(Rated(FALLING))).difficulty.tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(planned(SameSizeClusters(Grouped([0, 0, 0, 1, 1, 1]))).cluster.tolist()) == [0, 0, 0, 1, 1, 1]
    assert len(planned(MatchedFilter(Kept([0, 0, 1, 1, 1, 1]))).dropped) == 2


TABLE = [[1, 0], [0, 2], [3, 0], [0, 4], [5, 0], [0, 6]]


def seen(signals):
    """The feature rows that an operation gets."""
    found = []

    class Look(Reading):
        def apply(self, plan, prompts, features):
            found.append(features)
            return plan

    planned(Look(None), signals)
    return found[0]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        TABLE,
        np.array(TABLE),
        pd.DataFrame(TABLE),
        torch.tensor(TABLE, dtype=torch.bfloat16),
        sparse.csr_matrix(TABLE),
        sparse.coo_array(TABLE),
        sparse.csc_matrix(TABLE),
    ],
)
def test_tables_of_any_kind_are_feature_rows(given, cached, tmp_path):
    source = Read(given)
    rows = seen(CachedSignals(source, str(tmp_path)) if cached else source)
    assert isinstance(rows, np.ndarray | sparse.csr_array) and rows.dtype.kind == "f"
    assert (rows if isinstance(rows, np.ndarray) else rows.toarray()).tolist() == TABLE


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, r"Read\.features returned None; return 6 rows of numbers, one a prompt"),
        ([1.0] * 6, r"Read\.features returned a list of shape \(6,\); return 6 rows"),
        (np.ones((5, 2)), r"Read\.features returned an ndarray of shape \(5, 2\); return 6 rows"),
        (sparse.csr_array(np.ones((5, 2))), r"Read\.features returned a csr_array of shape \(5, 2\); return 6 rows"),
        ([["a", "b"]] * 6, r"Read\.features returned a list of .*str.* of shape \(6, 2\); return 6 rows"),
        ({"p0": [1.0]}, r"Read\.features returned a dict"),
    ],
)
def test_what_is_no_table_is_refused(given, says, cached, tmp_path):
    source = Read(given)
    with pytest.raises(InputError, match=says):
        seen(CachedSignals(source, str(tmp_path)) if cached else source)


def test_a_cache_refuses_a_key_that_is_no_text(tmp_path):
    with pytest.raises(InputError, match=r"Read\.fingerprint returned None; return a text"):
        seen(CachedSignals(Read(TABLE, key=None), str(tmp_path)))
