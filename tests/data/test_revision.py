"""Operations that decide while training runs: what they see and may do, and that a resumed run decides the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saerl_lightning.data.callback import DataCallback, Online
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.online.rules.rule import Arrangement
from tests.data.served_prompts import (
    ByResults,
    ListPrompts,
    Recorder,
    Refilling,
    SaveEverywhere,
    a_quiet_trainer,
    fit,
    make,
    outcomes,
    prompts,
    trainer,
)

__all__ = ["a_quiet_trainer"]


class Graded(Recorder):
    """Prompt r answers right (r + step) % 3 of 2 times, so that what is learned depends on when it was served."""

    def rewards(self, rows):
        right = torch.tensor([(row + self.trainer.global_step) % 3 for row in rows])
        return torch.stack([(right > 0).float(), (right > 1).float()], 1)


class RefillingGraded(Refilling, Graded):
    """Takes further prompts into its steps."""


class WithoutSolved(ByResults):
    """Excludes prompts with two right answers in all."""

    def arrange(self, plan, rest, random):
        solved = self.right[rest] >= 5
        solved &= np.cumsum(solved) < 8  # some are left
        return Arrangement(np.arange(len(rest)), excluded=solved, reason="solved")


def run(tmp_path, operation, module=Graded, count=37, ckpt_path=None, epochs=3, **arguments):
    data = make(count, online=operation, val={"v": ListPrompts(prompts(3, "v"))})
    made = module()
    quiet = {"max_epochs": epochs, "num_sanity_val_steps": 0, "val_check_interval": 2}
    trainer(**quiet, **arguments).fit(made, datamodule=data, ckpt_path=ckpt_path)
    return made, data


@pytest.mark.slow
@pytest.mark.parametrize("module", [Graded, RefillingGraded])
@pytest.mark.parametrize(
    "operation", [ByResults(), ByResults(repeats=True), WithoutSolved()], ids=["once", "repeats", "excluding"]
)
def test_resuming_anywhere_decides_the_same(tmp_path, operation, module):
    whole, _ = run(tmp_path, operation, module, 25, epochs=2, callbacks=[SaveEverywhere(tmp_path)])
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) >= 12
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.split("-")[0])
        resumed, _ = run(tmp_path, operation, module, 25, checkpoint, epochs=2)
        assert resumed.served == whole.served[done:], checkpoint.name
        assert resumed.weight.item() == whole.weight.item()


def test_what_is_learned_changes_what_is_served_and_every_prompt_is_served_once(tmp_path):
    decided, _ = run(tmp_path, ByResults())
    planned, _ = run(tmp_path, None)
    assert decided.served != planned.served
    for epoch in range(3):
        rows = [row for batch in decided.served[9 * epoch : 9 * epoch + 9] for row in batch]
        assert len(set(rows)) == 36
    assert decided.served[9:18] != decided.served[:9] != decided.served[18:]


def test_a_prompt_may_come_again_only_with_repeats(tmp_path):
    decided, _ = run(tmp_path, ByResults(repeats=True), epochs=1)
    assert len(decided.served) == 9
    assert all(len(set(batch)) == 4 for batch in decided.served)
    assert len({row for batch in decided.served for row in batch}) < 36


def test_excluded_prompts_shorten_the_epochs_and_the_validations_still_run(tmp_path):
    decided, data = run(tmp_path, WithoutSolved())
    assert 18 < len(decided.served) < 27
    assert decided.trainer.current_epoch == 3
    last = {row for batch in decided.served[-5:] for row in batch}
    gone = {row for row, why in data.planned.sampler.plan.dropped.items() if why == "solved"}
    assert len(gone) == 7
    assert not gone & last


class Seen(DataCallback):
    """Notes what it was asked, and serves the rest backwards."""

    def __init__(self):
        self.asked = []

    def apply(self, plan, prompts, features):
        return plan

    def revise(self, plan, served):
        self.asked.append((plan.rows.tolist(), served))
        return plan.go_on(served, plan.rows[served:][::-1])


def test_the_rest_is_given_in_the_plans_order_before_every_batch():
    operation = Seen()
    data = make(11, extra=[operation])
    module = fit(data)
    planned = data.plan.rows.tolist()
    first = planned[::-1][:4]
    second = [row for row in planned if row not in first][::-1][:4]
    assert module.served == [first, second]
    rest = [row for row in planned if row not in first]
    assert operation.asked[0] == (planned, 0)
    assert operation.asked[1] == ([*first, *rest], 4)


class Wrong(Online):
    """Returns whatever a function makes of the plan."""

    def __init__(self, change):
        self.change = change

    def revise(self, plan, served):
        return self.change(plan, served) if served else plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan, served: None, "returned None; return a SamplePlan"),
        (lambda plan, served: replace(plan, rows=plan.rows[::-1]), "other rows among the 4 handed out"),
        (lambda plan, served: plan.go_on(served, plan.rows[served + 1 :]), "a plan with no row"),
        (lambda plan, served: plan.go_on(served, plan.rows[[-1] * 7]), "7 times among those left"),
    ],
)
def test_a_revision_that_does_not_serve_what_is_left_is_refused(change, said):
    with pytest.raises(InputError, match=f"Wrong.revise .*{said}"):
        fit(make(11, online=Wrong(change)))


def test_a_checkpoint_of_a_run_with_other_decisions_is_refused(tmp_path):
    run(tmp_path, ByResults(), callbacks=[SaveEverywhere(tmp_path)], epochs=1)
    with pytest.raises(InputError, match=r"arranged with data\.online, this run's is without it"):
        run(tmp_path, None, ckpt_path=tmp_path / "2-batch.ckpt")
    (tmp_path / "plain").mkdir()
    run(tmp_path, None, callbacks=[SaveEverywhere(tmp_path / "plain")], epochs=1)
    with pytest.raises(InputError, match=r"arranged without data\.online, this run's is with it"):
        run(tmp_path, ByResults(), ckpt_path=tmp_path / "plain" / "2-batch.ckpt")


def test_groups_without_a_graded_answer_teach_nothing_and_a_reward_beyond_1_is_refused():
    operation = ByResults()
    data = make(11, online=operation)
    data.tokenizer = Recorder().tokenizer
    data.set_up_plan()
    nan = torch.nan
    operation.observe(outcomes(["p3", "p7"], torch.tensor([[nan, nan], [1.0, nan]])))
    assert operation.right.tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    with pytest.raises(RunStopped, match=r"prompt 'p7' got 4\.5 on average; put a reward from 0 to 1 first"):
        operation.observe(outcomes(["p3", "p7"], torch.tensor([[1.0, 0.0], [4.0, 5.0]])))
