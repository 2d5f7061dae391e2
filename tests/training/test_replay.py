"""Replay: what is stored and drawn, by hand; a step with replayed groups worked anew; resumed; on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.reweighting.ar import AR
from saerl_lightning.policy.load import Policy
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.replay.replay import Replay, drawn, replayed_groups
from saerl_lightning.training.rounds.knapsack import Knapsack
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights
from tests.training.test_dynamic_sampling import Witness, batch_of, graded
from tests.training.test_grpo_module import Record
from tests.training.test_ranks import run_on_one_and_two

SMALL = Sampling(group_size=8, max_tokens=6, seed=3)
SETTINGS = {"sampling": SMALL, "max_grad_norm": None}


def groups(rows: list[int], silent: tuple[int, ...] = ()) -> GradedGroups:
    return graded(batch_of(rows), {row: [0.0, 0.0 if row in silent else 1.0] for row in rows})


def test_shares_worked_by_hand():
    assert [replayed_groups(8, share) for share in (0.0, 0.2, 0.5, 0.75)] == [0, 2, 8, 24]
    assert replayed_groups(3, 0.25) == 1 and replayed_groups(3, 0.2) == 0
    keys = [(0, place, place) for place in range(5)]
    assert drawn(keys, 9, np.random.default_rng(0)) == {*keys} and drawn([], 3, np.random.default_rng(0)) == set()
    assert len(drawn(keys, 3, np.random.default_rng(0))) == 3


def test_what_is_stored_and_replayed_step_by_step():
    """Silent groups are not stored; a later group of a prompt takes the earlier one's place; the oldest go first."""
    replay = Replay(share=0.5, size=4, max_age=3)
    first = groups([0, 1, 2], silent=(1,))
    assert replay.mix(first, 0) is first
    assert [each.key for each in replay.stored] == [(0, 0, 0), (0, 2, 2)]
    assert replay.report == {"replay/share": 0.0, "replay/age": 0.0, "replay/age/max": 0.0, "replay/stored": 2.0}
    mixed = replay.mix(groups([2, 3]), 1)  # 2 is in this step, so that only 0 can be replayed
    assert mixed.batch.rows == [2, 3, 0] and mixed.replayed.tolist() == [False, False, True]
    assert mixed.rollouts.texts == ["20", "21", "30", "31", "0", "1"]
    assert replay.report["replay/share"] == pytest.approx(1 / 3) and replay.report["replay/age"] == 1
    assert [each.key for each in replay.stored] == [(0, 0, 0), (1, 0, 2), (1, 1, 3)]
    mixed = replay.mix(groups([4, 5]), 3)
    assert len(mixed.batch.rows) == 4 and mixed.replayed.sum() == 2
    # 0 would be 4 steps old in the next step
    assert [each.key[2] for each in replay.stored] == [2, 3, 4, 5]
    replay.mix(groups([6]), 3)
    assert [each.key[2] for each in replay.stored] == [3, 4, 5, 6]
    assert {each.group.batch.rows[0] for each in replay.stored} == {3, 4, 5, 6}


def test_a_group_is_dropped_behind_the_last_step_that_may_replay_it():
    """With an age of at most 2, step 2 replays a group of step 0, and step 3 could not; there is room for all."""
    replay = Replay(share=0.75, size=9, max_age=2)
    for step in range(3):
        mixed = replay.mix(groups([step]), step)
    assert sorted(mixed.batch.rows) == [0, 1, 2] and replay.report["replay/age/max"] == 2
    assert [each.key for each in replay.stored] == [(1, 0, 1), (2, 0, 2)] and replay.report["replay/stored"] == 2


def test_what_is_drawn_depends_on_seed_and_step_alone():
    def rows(seed: int, step: int) -> list[int]:
        replay = Replay(share=0.5, seed=seed)
        replay.mix(groups([*range(10)]), step - 1)
        return replay.mix(groups([20, 21, 22]), step).batch.rows[3:]

    assert rows(0, 1) == rows(0, 1)
    assert len({tuple(rows(seed, step)) for seed in range(3) for step in (1, 2)}) > 3


def logprobs_of(model, rows: Rollouts) -> torch.Tensor:
    mask = torch.arange(rows.tokens.shape[1])[None] < rows.lengths[:, None]
    logits = model(rows.tokens, attention_mask=mask).logits
    found = torch.zeros(rows.tokens.shape)
    found[:, 1:] = logits[:, :-1].float().log_softmax(-1).gather(2, rows.tokens[:, 1:, None])[..., 0]
    return found


@pytest.mark.parametrize("shortcuts", ["all", "none"])
def test_a_step_with_replayed_groups_is_the_one_worked_anew(tiny, tmp_path, shortcuts):
    """The third step, from the weights behind the second: clipped ratios against the log-probabilities as sampled."""

    class Keeps(Witness):
        def on_train_batch_end(self, trainer, pl_module, *_):
            super().on_train_batch_end(trainer, pl_module)
            self.weights = [*getattr(self, "weights", []), weights(pl_module)]

    witness, record = Keeps(tmp_path), Record()
    made = module(tiny, replay=Replay(), shortcuts=shortcuts, **SETTINGS)
    fit(made, data(), trainer(tmp_path, 3, (witness, record)))
    step, rows = witness.steps[2], witness.steps[2].rollouts
    assert len(step.total) == 8 and step.replayed.tolist() == [False] * 4 + [True] * 4
    model = Policy(tiny).load_model()
    model.load_state_dict(witness.weights[1])
    logprobs = logprobs_of(model, rows)
    old = torch.where(step.replayed.repeat_interleave(8)[:, None], rows.logprobs, logprobs.detach())
    assert ((logprobs.detach() - rows.logprobs) * rows.mask)[32:].abs().max() > 1e-2
    ratio = ((logprobs - old) * rows.mask).exp()
    mean, std = step.total.mean(1, keepdim=True), step.total.std(1, keepdim=True)
    advantages = ((step.total - mean) / (std + 1e-4)).flatten()[:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * rows.mask
    loss = -(gain.sum(1) / rows.mask.sum(1)).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert largest_difference(witness.weights[1], model.state_dict()) > 1e-3
    assert largest_difference(witness.weights[2], model.state_dict()) < 3e-6
    logged = record.rows[2]
    assert logged["replay/share"] == 0.5 and 1 <= logged["replay/age"] <= logged["replay/age/max"] <= 2
    assert logged["rollouts/generated"] == 32 and logged["rollouts/trained"] == 64
    assert logged["sampler/mismatch_max"] < 1e-4  # the guard compares fresh rows alone


def test_a_resumed_run_is_the_whole_one(tiny, tmp_path):
    def run(folder: str, ckpt_path: Path | None = None):
        (tmp_path / folder).mkdir()
        witness, replay = Witness(tmp_path / folder), Replay(size=9, max_age=5)
        made = module(tiny, replay=replay, updates_per_batch=2, **SETTINGS)
        return fit(made, data(), trainer(tmp_path, 18, (witness,)), ckpt_path=ckpt_path), witness, replay

    whole, seen, kept = run("whole")
    assert max(len(step.total) for step in seen.steps) == 8
    for step in (1, 6):  # within an epoch, and at its end
        saved = tmp_path / "whole" / f"{2 * step}.ckpt"
        assert len(torch.load(saved, weights_only=True)["replay"]["keys"]) <= 9
        resumed, again, stored = run(f"from-{step}", saved)
        assert [each.batch.rows for each in again.steps] == [each.batch.rows for each in seen.steps[step:]], step
        assert largest_difference(weights(whole), weights(resumed)) == 0
        assert [each.key for each in stored.stored] == [each.key for each in kept.stored]


class Plain(Objective):
    """Reinforces completions, without a ratio."""

    def advantages(self, rewards):
        return rewards

    def __call__(self, inputs):
        return -(inputs.logprobs * inputs.mask * inputs.advantages[:, None]).sum() / inputs.step_rows, {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": Plain()}, r"Plain has no ratio to correct for them \(compares_old\)"),
        ({"dynamic_sampling": Knapsack()}, r"model\.dynamic_sampling Knapsack makes unequal ones"),
        ({"guard": None, "sampling": Sampling(top_p=0.9)}, r"top_p 0\.9"),
        ({"reweighting": AR()}, r"AR weighs tokens by the policy's present probabilities"),
        ({"replay": True}, r"GRPOModule\.replay is True; write a Replay, as replay=Replay\(\)"),
    ],
)
def test_what_can_not_be_is_refused(tiny, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        fit(module(tiny, **{"replay": Replay(), **changes}), data(), trainer(tmp_path, 1))
    with pytest.raises(InputError, match=r"Replay\.share is 1"):
        Replay(share=1.0)


@pytest.mark.slow
def test_two_processes_replay_as_one(tiny, tmp_path):
    run_on_one_and_two(Path(__file__).with_name("case_ranks.py"), tiny, tmp_path, "replay")
    one, two = (torch.load(tmp_path / f"replay-{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert largest_difference(one, two) < 3e-6 < 1e-3 < largest_difference(one, Policy(tiny).load_model().state_dict())
    alone, shared = (json.loads((tmp_path / f"replay-{ranks}.json").read_text()) for ranks in (1, 2))
    for first, second in zip(alone, shared, strict=True):
        for key in ("replay/share", "replay/age", "replay/age/max", "replay/stored", "loss"):
            assert second[key] == pytest.approx(first[key], abs=2e-5), key
    assert alone[-1]["replay/share"] == 0.5
