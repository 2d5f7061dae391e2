"""PromptDataModule under a real Trainer: what is served, in which order, and after any interruption."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from saerl_lightning.data.callback import Curriculum
from saerl_lightning.data.curriculum import LengthOrder
from saerl_lightning.data.filtering import RandomFilter
from saerl_lightning.data.mixing import TailMixing
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.serving import PlanSampler, Progress
from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Sampling
from saerl_lightning.signals.random_signals import RandomSignals
from tests.data.served_prompts import (
    TOKENIZER,
    CountingSignals,
    ListPrompts,
    Recorder,
    SaveEverywhere,
    a_quiet_trainer,
    fit,
    make,
    prompts,
    trainer,
)

__all__ = ["a_quiet_trainer"]


def test_the_order_served_is_the_plans():
    data = make()
    module = fit(data, max_epochs=2)
    assert module.served == data.plan.batches().tolist() * 2
    assert len(module.served) == 6
    assert data.plan.mixed_from.max() == 1  # the operations did run
    assert np.isfinite(data.plan.difficulty).all()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_every_batch_and_overlap_nowhere(world):
    plan = SamplePlan.sequential(22, 4).reorder(np.random.default_rng(0).permutation(22))
    samplers = [PlanSampler(plan, Progress(2, 8), rank, world) for rank in range(world)]
    assert {len(s) for s in samplers} == {5}
    for start in (2, 0, 0):  # the first pass from where training was, every other one from the top
        shares = [list(s) for s in samplers]
        for b, parts in enumerate(zip(*shares, strict=True), start=start):
            assert {len(part) for part in parts} == {4 // world}
            assert sorted(row for part in parts for row in part) == sorted(plan.batches()[b].tolist())


class Missing(PromptSource):
    """Prompts that are not there any more."""

    def load(self):
        raise InputError("train.jsonl does not exist")


def test_questions_are_asked_without_the_pool_they_might_stand_in():
    data = make(train=Missing(), val={"dev": ListPrompts(prompts(3))})
    data.tokenizer = TOKENIZER
    with pytest.warns(UserWarning, match="which questions are trained on is not known, .*train.jsonl does not exist"):
        data.setup("validate")
    assert [len(each.pool.prompts) for each in data._val_pools] == [3]


def test_progress_counts_trained_batches_not_fetched_ones():
    sampler = PlanSampler(SamplePlan.sequential(8, 2), Progress(1, 2))
    assert sampler.progress == Progress(1, 2)  # nothing is begun
    assert iter(sampler)  # begun and left: takes nothing
    served = iter(sampler)
    assert [next(served), next(served)] == [[2, 3], [4, 5]]
    assert sampler.progress == Progress(1, 2)
    with pytest.raises(RuntimeError, match="2 batches are fetched and not trained"):
        sampler.take_next([1])
    sampler.advance()
    assert sampler.progress == Progress(2, 4)
    assert sampler.take_next([3]) == [6, 7]  # all that is left
    assert sampler.progress == Progress(2, 4)
    assert next(served, None) is None
    assert sampler.progress == Progress(2, 4)  # asked for more, and one is not trained yet
    sampler.advance()
    assert sampler.progress == Progress() and sampler.cut_short_at == 3
    assert next(iter(sampler)) == [0, 1]
    assert sampler.progress == Progress()


def test_refills_are_shared_out_in_the_order_of_ranks():
    samplers = [PlanSampler(SamplePlan.sequential(13, 3), rank=rank, world=3) for rank in range(3)]
    served = [iter(sampler) for sampler in samplers]
    assert [next(each) for each in served] == [[0], [1], [2]]
    assert [sampler.take_next([2, 0, 1]) for sampler in samplers] == [[3, 4], [], [5]]
    assert [sampler.take_next([0, 1, 0]) for sampler in samplers] == [[], [6], []]
    assert [next(each) for each in served] == [[7], [8], [9]]
    with pytest.raises(RuntimeError, match="fetched and not trained"):
        samplers[0].take_next([1, 0, 0])
    for sampler in samplers:
        sampler.advance()
    assert {sampler.progress for sampler in samplers} == {Progress(1, 7)}
    assert [sampler.take_next([2, 1, 2]) for sampler in samplers] == [[10, 11], [12], []]
    assert [sampler.take_next([0, 0, 2]) for sampler in samplers] == [[], [], []]
    for sampler, each in zip(samplers, served, strict=True):
        sampler.advance()
        assert sampler.progress == Progress(2, 13)
        assert next(each, None) is None


def test_ranks_that_cannot_share_evenly_are_refused():
    with pytest.raises(InputError, match=r"batch_size is 4, which 3 processes .* multiple of 3"):
        PlanSampler(SamplePlan.sequential(8, 4), world=3)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 5),
    refills=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=40, max_size=40),
    stop=st.integers(0, 40),
)
def test_refills_serve_every_prompt_at_most_once_and_a_stop_changes_nothing(size, batch, refills, stop):
    plan = SamplePlan.sequential(size, batch).reorder(np.random.default_rng(size).permutation(size))

    def steps(sampler, first):
        for step, rows in enumerate(sampler, start=first):
            taken = [row for count in refills[step] for row in sampler.take_next([count])]
            sampler.advance()
            yield rows + taken, sampler.progress

    whole = list(steps(PlanSampler(plan), 0))
    flat = [row for rows, _ in whole for row in rows]
    assert flat == plan.rows[: len(flat)].tolist()  # none twice, none passed over
    assert size - len(flat) < batch  # what is left fills no batch
    assert [progress.prompts for _, progress in whole] == np.cumsum([len(rows) for rows, _ in whole]).tolist()
    if stop < len(whole):
        start = ([Progress()] + [progress for _, progress in whole])[stop]
        assert start.batches == stop
        assert list(steps(PlanSampler(plan, start), stop)) == whole[stop:]


def test_fit_then_validate_reads_and_plans_once():
    source, held_out = ListPrompts(prompts(14)), ListPrompts(prompts(3, "v"))
    data, module = make(train=source, val={"held_out": held_out}), Recorder()
    run = trainer()
    run.fit(module, datamodule=data)
    plan = data.plan
    run.validate(module, datamodule=data)
    run.fit_loop.max_epochs = 2
    run.fit(module, datamodule=data)
    assert (source.loads, held_out.loads) == (1, 1)
    assert data.plan is plan


def test_named_sets_are_served_in_order_with_their_own_sampling():
    greedy = Sampling(temperature=0, group_size=1)
    data = make(
        val={
            "easy": ListPrompts(prompts(5, "e")),
            "hard": ValidationSet(ListPrompts(prompts(9, "h")), greedy, limit=3),
        },
        val_batch_size=2,
    )
    module = Recorder()
    trainer().validate(module, datamodule=data)
    easy, hard = [["e0", "e1"], ["e2", "e3"], ["e4"]], [["h0", "h1"], ["h2"]]
    expected = [(0, uids) for uids in easy] + [(1, uids) for uids in hard]
    assert module.validated == expected
    assert data.val_names == ["easy", "hard"]
    assert [data.val_set(0), data.val_set(1)] == [Sampling(group_size=4), greedy] == data.samplings
    assert data.topics == ["a", "b"]
    for run in ("test", "predict"):  # without sets of their own they take the validation sets
        module.validated.clear()
        getattr(trainer(), run)(module, datamodule=data, **({"return_predictions": False} if run == "predict" else {}))
        assert module.validated == expected
        assert data.test_names == ["easy", "hard"] and data.test_set(1) == greedy


def test_processes_share_a_validation_set():
    data = make(val={"v": ListPrompts(prompts(7, "v"))}, val_batch_size=2)
    data.tokenizer = TOKENIZER
    data.setup("validate")
    shares = [list(data._val_pools[0].loader(2, rank, 2)) for rank in range(2)]
    assert [[batch.rows for batch in share] for share in shares] == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    assert [[batch.places for batch in share] for share in shares] == [[[0, 2], [4, 6]], [[1, 3], [5]]]


def test_a_prompts_place_is_that_in_the_batch_of_all_processes():
    """Batches of 4 over 2 processes; a refill in which they ask for 1 and 2 prompts."""
    for rank, own, more in ((0, [0, 2], [0]), (1, [1, 3], [1, 2])):
        data = make(train=ListPrompts(prompts(12)), batch_size=4, mixing=None, shuffle_seed=None)
        data.tokenizer = TOKENIZER
        data.setup("fit")
        loader = iter(data.planned.loader(rank, 2))
        batch = next(loader)
        assert list(batch.places) == own and batch.rows == data.plan.rows[own].tolist()
        refill = data.next_prompts([1, 2])
        assert list(refill.places) == more and refill.rows == data.plan.rows[4:7][more].tolist()


def test_places_in_a_set_do_not_depend_on_the_size_of_batches():
    chat = ChatTemplate(max_prompt_tokens=40)
    data = make(val={"v": ListPrompts(prompts(2, "long", length=60) + prompts(5, "v"))}, chat=chat)
    data.tokenizer = TOKENIZER
    data.setup("validate")
    for size, world in ((1, 1), (2, 3), (32, 2)):
        shares = [batch for rank in range(world) for batch in data._val_pools[0].loader(size, rank, world)]
        found = {row: place for batch in shares for row, place in zip(batch.rows, batch.places, strict=True)}
        assert found == {2: 0, 3: 1, 4: 2, 5: 3, 6: 4}


def test_prompts_that_are_too_long_are_dropped_with_count_and_reason(caplog):
    pool = prompts(10) + prompts(2, "long", length=60)
    asked = prompts(1, "v") + prompts(2, "v long", length=60)
    data = make(
        train=ListPrompts(pool), chat=ChatTemplate(max_prompt_tokens=40), val={"v": ListPrompts(asked)}, mixing=None
    )
    data.tokenizer = TOKENIZER
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        data.setup("fit")
    assert "data.train: 2 of 12 prompts are too long" in caplog.text
    assert "v: 2 of 3 prompts are too long" in caplog.text
    assert set(data.plan.dropped) == {10, 11}
    assert all("max_prompt_tokens 40" in why for why in data.plan.dropped.values())
    assert [batch.rows for batch in data.val_dataloader()[0]] == [[0]]


def test_the_shuffle_is_of_the_order_only():
    def order(**arguments):
        data = PromptDataModule(ListPrompts(prompts(14)), batch_size=4, **arguments)
        data.tokenizer = TOKENIZER
        data.setup("fit")
        assert [p.uid for p in data.pool.prompts] == [f"p{i}" for i in range(14)]
        return data.plan.rows.tolist()

    assert order(shuffle_seed=None) == list(range(14))
    assert order() == order(shuffle_seed=0) != order(shuffle_seed=1)
    assert sorted(order(shuffle_seed=1)) == list(range(14))


class BySignal(Curriculum):
    """Orders by the first feature column, and counts what it observes."""

    def __init__(self) -> None:
        self.seen = 0

    @property
    def needs_features(self) -> bool:
        return True

    def difficulty(self, plan, prompts, features):
        return features[:, 0].copy()

    def observe(self, outcomes) -> None:
        self.seen += len(outcomes.uids)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state) -> None:
        self.seen = state["seen"]

    def metrics(self):
        return {"seen": float(self.seen)}


def test_features_are_computed_once_in_the_pools_order_and_state_is_checkpointed(tmp_path):
    signals = CountingSignals(3)
    data = make(signals=signals, curriculum=BySignal(), extra=[BySignal()], mixing=None)
    fit(data, callbacks=[SaveEverywhere(tmp_path)])
    assert signals.calls == 1
    assert np.array_equal(data.plan.difficulty, RandomSignals(3).features(prompts(14))[:, 0])
    assert list(data.operations) == ["clustering", "curriculum", "extra.0"]
    said = data.metrics()
    assert said.pop("data/clustering/ari") == 1.0  # topics against topics
    assert {name: value for name, value in said.items() if "clustering" not in name} == {
        "data/curriculum/seen": 12,
        "data/extra.0/seen": 12,
    }
    resumed = make(signals=RandomSignals(3), curriculum=BySignal(), extra=[BySignal()], mixing=None)
    fit(resumed, ckpt_path=tmp_path / "2-batch.ckpt")
    assert resumed.metrics() == data.metrics()
    idle = make(signals=signals)
    idle.tokenizer = TOKENIZER
    idle.setup("fit")
    assert signals.calls == 1  # nothing reads them


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, r"PromptDataModule\.batch_size is 0; write a whole number from 1"),
        ({"val_batch_size": 0}, r"PromptDataModule\.val_batch_size is 0"),
        ({"batch_size": 16}, r"batch_size is 16, but only 14 of 14 prompts are left \(none was dropped\)"),
        (
            {"filtering": RandomFilter(0.8)},
            r"batch_size is 4, but only 3 of 14 .*\(11 dropped: random 0.8 of the prompts \(seed 0\)\)",
        ),
        (
            {"chat": ChatTemplate(max_prompt_tokens=3)},
            r"no prompt is left of 14 \(14 dropped: .*max_prompt_tokens 3\); raise data.chat.max_prompt_tokens$",
        ),
        ({"curriculum": BySignal()}, r"data\.curriculum \(BySignal\) reads feature rows, .*--data\.signals Random"),
        ({"extra": [BySignal()]}, r"data\.extra\.0 \(BySignal\) reads feature rows"),
        ({"train": "no/such.jsonl"}, r"no/such\.jsonl"),
    ],
)
def test_bad_input_is_named(arguments, said):
    with pytest.raises(InputError, match=said):
        fit(make(**arguments))


def test_without_a_tokenizer_or_a_test_set_it_says_so():
    with pytest.raises(InputError, match="there is no tokenizer: "):
        make().setup("fit")
    with pytest.raises(InputError, match="names no set"):
        trainer().test(Recorder(), datamodule=make())
    with pytest.raises(InputError, match=r"ValidationSet\.limit is 0; .*, or null"):
        ValidationSet("v.jsonl", limit=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_batches_pass_every_precision_untouched(precision):
    data = make(val={"v": ListPrompts(prompts(3, "v"))})
    module = fit(data, precision=precision)
    assert module.served == data.plan.batches().tolist()
    assert module.validated


def test_the_global_random_state_is_left_alone():
    data = make(filtering=RandomFilter(), signals=RandomSignals(), extra=[BySignal()])
    data.tokenizer = TOKENIZER
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data.setup("fit")
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_yaml_configures_every_slot(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptDataModule, "data", skip={"extra"})
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text(
        """
        data:
          class_path: saerl_lightning.data.module.PromptDataModule
          init_args:
            train: train.jsonl
            batch_size: 4
            chat: {max_prompt_tokens: 77}
            val:
              plain: a.jsonl
              own: {source: b.jsonl, sampling: {group_size: 2, temperature: 0.5}, limit: 3}
              part: {class_path: saerl_lightning.prompts.file.FilePrompts, init_args: {path: c.jsonl}}
        """
    )
    overlay.write_text(
        """
        data:
          init_args:
            clustering: {class_path: saerl_lightning.data.clustering.TopicClusters}
            curriculum: {class_path: saerl_lightning.data.curriculum.LengthOrder}
            mixing: {class_path: saerl_lightning.data.mixing.TailMixing}
        """
    )
    parser.add_argument("--config", action="config")
    given = [f"--config={base}", f"--config={overlay}", "--data.mixing.fraction=0.5", "--data.clustering=null"]
    data = parser.instantiate(parser.parse_args(given)).data
    assert {slot: type(operation) for slot, operation in data.operations.items()} == {
        "curriculum": LengthOrder,
        "mixing": TailMixing,
    }
    assert data.operations["mixing"].fraction == 0.5
    assert data.chat.max_prompt_tokens == 77
    assert data.val["plain"] == "a.jsonl"
    assert data.val["own"] == ValidationSet("b.jsonl", Sampling(group_size=2, temperature=0.5), 3)
    assert data.val["part"].path == "c.jsonl"
