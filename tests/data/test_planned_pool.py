"""What stands beside the pool while it is planned: measured labels, reference prompts, features, other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_array

from saerl_lightning.data.callback import Clustering, Curriculum, Filtering
from saerl_lightning.data.curriculum import LabelOrder
from saerl_lightning.data.mixing import TailMixing
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.planning import plan_digest, with_small_indices
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.source import ProbeReference
from saerl_lightning.records import Prompt
from saerl_lightning.signals.random_signals import RandomSignals
from saerl_lightning.signals.source import SignalSource
from tests.data.served_prompts import TOKENIZER, ListPrompts, prompts

SCRIPT = Path(__file__).with_name("plan_on_ranks.py")


class Teachers(ProbeReference):
    """Five prompts of good quality."""

    def prompts(self, pool):
        return [Prompt(f"teacher{i}", pool[i].messages, "", labels={"quality": 1.0}) for i in range(5)]


class Seen:
    """What an operation was given."""

    def note(self, plan, prompts, features) -> None:
        self.uids = [prompt.uid for prompt in prompts]
        self.rows = sorted(plan.rows.tolist())
        self.columns = len(plan.cluster), len(features)


class DropFirst(Seen, Filtering):
    needs_features = True

    def quality(self, plan, prompts, features):
        self.note(plan, prompts, features)
        return np.arange(len(prompts), dtype=float)

    def keep(self, plan, prompts, features):
        return plan.quality > 0


class TwoClusters(Seen, Clustering):
    needs_features = True

    def label(self, plan, prompts, features):
        self.note(plan, prompts, features)
        return np.arange(len(prompts)) % 2


class FirstColumn(Seen, Curriculum):
    needs_features = True

    def difficulty(self, plan, prompts, features):
        self.note(plan, prompts, features)
        return features[:, 0].copy()


def make(count: int = 14, **arguments) -> PromptDataModule:
    arguments = {
        "signals": RandomSignals(3),
        "filtering": DropFirst(),
        "clustering": TwoClusters(),
        "curriculum": FirstColumn(),
        "mixing": TailMixing(0.25),
    } | arguments
    data = PromptDataModule(ListPrompts(prompts(count)), batch_size=4, **arguments)
    data.tokenizer = TOKENIZER
    return data


def test_reference_prompts_teach_and_leave_no_trace():
    plain, taught = make(), make(reference=Teachers())
    taught.keep_features = True
    plain.set_up_plan()
    taught.set_up_plan()
    for operation in list(taught.operations.values())[:3]:
        assert operation.uids == [f"p{i}" for i in range(14)] + [f"teacher{i}" for i in range(5)]
        assert max(operation.rows) == 13
        assert operation.columns == (19, 19)
    assert plan_digest(taught.plan, taught.pool.prompts) == plan_digest(plain.plan, plain.pool.prompts)
    ledger, expected = taught.plan.ledger(), plain.plan.ledger()
    assert ledger.keys() == expected.keys()
    for column in ledger:
        assert np.array_equal(ledger[column], expected[column]), column
    assert taught.plan.dropped == {0: "dropped by DropFirst"}
    assert np.array_equal(taught.features, RandomSignals(3).features(prompts(14)))
    assert plain.features is None and not plain._val_pools


def test_too_few_prompts_are_counted_without_the_reference():
    with pytest.raises(InputError, match=r"only 3 of 4 prompts are left \(1 dropped"):
        make(4, reference=ManyTeachers()).set_up_plan()


class ManyTeachers(ProbeReference):
    """More of them than the pool has."""

    def prompts(self, pool):
        return [Prompt(f"teacher{i}", pool[0].messages, "") for i in range(5)]


def test_prompts_that_are_too_long_have_feature_rows():
    data = make(chat=ChatTemplate(max_prompt_tokens=24))
    long = Prompt.asking("long", "x" * 60, "1")
    data.train = ListPrompts([long, *prompts(14)])
    data.keep_features = True
    data.set_up_plan()
    assert "max_prompt_tokens 24" in data.plan.dropped[0]
    assert data.features.shape == (15, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 3), ("train", ListPrompts(prompts(3))), ("shuffle_seed", 7), ("labels", "other.jsonl")],
)
def test_a_setting_that_was_used_can_not_be_changed(name, value):
    """Before, the plan stayed, and the log told the new batch size."""
    data = make()
    setattr(data, name, getattr(data, name))  # nothing was read yet
    data.set_up_plan()
    with pytest.raises(InputError, match=rf"data\.{name} would have no effect now; make a new PromptDataModule"):
        setattr(data, name, value)
    data.tokenizer, data.keep_features = None, True  # no settings of the constructor


def test_a_slot_can_not_be_filled_later():
    with pytest.raises(InputError, match=r"data\.curriculum would have no effect now"):
        make().curriculum = LabelOrder()


def test_measured_labels_reach_the_operations(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"uid": f"p{i}", "difficulty": float(i)}) + "\n" for i in range(13)))
    data = make(filtering=None, clustering=None, mixing=None, curriculum=LabelOrder(), labels=str(file))
    data.set_up_plan()
    assert data.plan.difficulty[:13].tolist() == list(range(13))
    assert data.plan.difficulty[13] == 13 * 7 % 11  # the data's own
    unlabelled = make(filtering=None, clustering=None, mixing=None, curriculum=LabelOrder())
    unlabelled.set_up_plan()
    assert unlabelled.plan.difficulty[1] == 7


class Broken(SignalSource):
    """One entry is no number."""

    def __init__(self, value: float, sparse: bool, rows: int = 14) -> None:
        self.value, self.sparse, self.rows = value, sparse, rows

    def features(self, prompts):
        rows = np.zeros((self.rows, 4))
        rows[:, 2] = 1.0
        rows[9, 1] = self.value
        return csr_array(rows) if self.sparse else rows

    def fingerprint(self, prompts):
        return "broken"


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_feature_that_is_no_number_is_refused_with_its_prompt(sparse, value):
    with pytest.raises(InputError, match=r"Broken gave 1 prompts feature rows with NaN .* \(first: 'p9'\)"):
        make(signals=Broken(value, sparse)).set_up_plan()


def test_a_source_that_forgets_rows_is_refused():
    with pytest.raises(InputError, match=r"Broken.features returned .* of shape \(13, 4\); return 14 rows"):
        make(signals=Broken(0.0, True, 13)).set_up_plan()


def test_sparse_rows_reach_the_operations_with_small_indices():
    """scikit-learn's coordinate descent takes no others, and shards are joined with 64-bit ones."""
    wide = csr_array(np.eye(5))
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    narrow = with_small_indices(wide)
    assert narrow.indices.dtype == narrow.indptr.dtype == np.int32
    assert np.array_equal(narrow.toarray(), np.eye(5))
    assert wide.indices.dtype == np.int64
    huge = SimpleNamespace(nnz=2**31)  # stands for rows of more entries than 32 bits can number: 34 GB
    assert with_small_indices(huge) is huge


def test_features_are_kept_in_the_cache_folder(tmp_path):
    data = make(signal_cache=str(tmp_path / "signals"))
    data.set_up_plan()
    files = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert files
    again = make(signal_cache=str(tmp_path / "signals"), signals=Unable())
    again.set_up_plan()
    assert np.array_equal(again.plan.rows, data.plan.rows)


class Unable(RandomSignals):
    """Promises the rows of `RandomSignals(3)`, and can't compute them."""

    def __init__(self) -> None:
        super().__init__(3)

    def features(self, prompts):
        raise AssertionError("not asked for")

    def fingerprint(self, prompts):
        return RandomSignals(3).fingerprint(prompts)


@pytest.mark.slow
def test_the_first_process_plans_for_all_and_refuses_for_all(tmp_path):
    root = SCRIPT.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    ended = subprocess.run(command, env=environment, cwd=root, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["plan"] == second["plan"]
    assert [a + b for a, b in zip(first["served"], second["served"], strict=True)] == [
        batch[0::2] + batch[1::2] for batch in np.array(first["plan"])[:12].reshape(3, 4).tolist()
    ]
    assert first["metrics"] == second["metrics"] == {"data/curriculum/score": 1.0}
    assert (first["calls"], second["calls"]) == (1, 0)
    assert first["refused"] == second["refused"] == "no prompt has the label 'difficulty'"
    left, batches = np.arange(14), []
    for step in range(3):  # as the first process draws
        order = np.random.default_rng([0, 4 * step]).permutation(left)
        batches.append([*order[:4:2].tolist(), *order[1:4:2].tolist()])
        left = np.array([row for row in left.tolist() if row not in batches[-1]])
    assert [a + b for a, b in zip(first["arranged"], second["arranged"], strict=True)] == batches
