"""What a step logs, and what has a say in a baseline: combined over micro-batches, updates and ranks by hand."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.rloo import RLOO
from saerl_lightning.objective.terms import KLPenalty
from saerl_lightning.records import Prompt, PromptBatch, Rollouts, Sampling
from saerl_lightning.rollout.scripted import ScriptedEngine
from saerl_lightning.training.grading import GradedGroups, Reference
from saerl_lightning.training.guard import Differences
from saerl_lightning.training.metrics import (
    Completions,
    MetricSum,
    averaged,
    means_over_ranks,
    over_ranks,
    throughput_metrics,
)
from saerl_lightning.training.tables.completion_table import CompletionTable
from tests.objective.test_conformance import SHIPPED
from tests.training.conftest import ParityReward, data, fit, module, trainer
from tests.training.test_grpo_module import Record

NAN = float("nan")


def test_metrics_of_micro_batches_add_up():
    """Means are shares that add up; the extremes of nothing, as a micro-batch without a token has them, have no say."""
    total = MetricSum()
    for mean, low, high in ((0.25, 0.9, 1.1), (0.5, 0.8, 1.0), (0.0, math.inf, -math.inf)):
        total.add({"kl": torch.tensor(mean), "ratio/min": torch.tensor(low), "ratio/max": high, "own/min": low})
    assert total.numbers() == pytest.approx({"kl": 0.75, "ratio/min": 0.8, "ratio/max": 1.1, "own/min": 0.8})
    nothing = MetricSum()
    nothing.add({"ratio/min": torch.tensor(math.inf), "ratio/max": torch.tensor(-math.inf)})
    assert all(math.isnan(value) for value in nothing.numbers().values())


def test_numbers_of_updates_and_ranks_are_combined_by_their_names():
    parts = [
        {"kl": 0.2, "ratio/min": 0.9, "ratio/max": NAN, "time/old": 3.0},
        {"kl": 0.6, "ratio/min": 0.7, "ratio/max": 1.5},
    ]
    assert averaged(parts) == pytest.approx({"kl": 0.4, "ratio/min": 0.7, "ratio/max": 1.5, "time/old": 1.5})
    ranks = [
        {
            "rollouts/generated": 8.0,
            "rollouts/trained": 4.0,
            "rollouts/scored_tokens": 30.0,
            "rollouts/refill_rounds": 2.0,
        },
        {
            "rollouts/generated": 4.0,
            "rollouts/trained": 4.0,
            "rollouts/scored_tokens": 10.0,
            "rollouts/refill_rounds": 0.0,
        },
    ]
    assert list(over_ranks(ranks).values()) == [12.0, 8.0, 40.0, 2.0]
    seconds = {"time/generate": 2.0, "time/forward": 1.0, "time/backward": 3.0}
    speed = throughput_metrics({**seconds, "rollouts/generated_tokens": 50.0, "rollouts/scored_tokens": 40.0})
    assert list(speed.values()) == [25.0, 10.0]


def test_parts_of_rewards_are_means_over_completions_not_over_ranks():
    """Three completions have the part on one rank and one on the other; the second part is on one rank alone."""
    ranks = [{"a": [1.0, 1.0, 1.0]}, {"a": [5.0], "b": [2.0, 4.0]}]
    assert means_over_ranks(ranks) == {"a": 2.0, "b": 3.0}


def completions(
    total: list[list[float]], lengths: list[int], truncated: list[bool], difficulty: list[float], first: int = 0
) -> Completions:
    rewards, cut = torch.tensor(total), torch.tensor(truncated)
    compared = rewards.masked_fill(cut.view_as(rewards), NAN)
    versions = torch.full_like(torch.tensor(lengths), 3)
    return Completions(
        {"math": rewards},
        rewards,
        compared,
        torch.tensor(lengths),
        cut,
        versions,
        torch.tensor(difficulty),
        first + torch.arange(len(total)),
    )


def test_completions_of_two_ranks_are_those_of_one():
    """A rank with no group that varies and only cut completions, beside one with two groups that do."""
    idle = completions([[1.0, 1.0]], [4, 4], [True, True], [NAN])
    busy = completions([[1.0, 0.0], [NAN, 0.0], [0.0, 1.0]], [1, 2, 3, 1, 2, 2], [False] * 6, [0.25, 0.5, 1.0], 1)
    found = Completions.join([idle, busy]).metrics(began=5)
    expected = {
        "reward/mean": 4 / 7,
        "reward/std": math.sqrt((4 * (3 / 7) ** 2 + 3 * (4 / 7) ** 2) / 6),
        "reward/math/mean": 4 / 7,
        "reward/math/std": math.sqrt((4 * (3 / 7) ** 2 + 3 * (4 / 7) ** 2) / 6),
        "reward/math/failed_frac": 1 / 8,
        "groups/zero_variance_frac": 1 / 2,
        "groups/effective": 2,
        "groups/tokens_per_effective": 19 / 2,
        "completions/length_mean": 19 / 8,
        "completions/length_max": 4,
        "completions/length_min": 1,
        "completions/terminated_length_mean": 11 / 6,
        "completions/truncated_frac": 2 / 8,
        "rollouts/generated_tokens": 19,
        "rollouts/staleness": 2,
        "rollouts/staleness/max": 2,
        "plan/difficulty": 1.75 / 3,  # of the three rated prompts
        "plan/pass_rate": (1 + 0.5 + 0 + 0.5) / 4,  # the failed completion has no say in its prompt's rate
    }
    assert found == pytest.approx(expected)


# -- who has a say in a baseline ---------------------------------------------------------------------------------------


def test_a_rank_without_tokens_has_no_say_in_the_mismatch():
    policy, sampler = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -2.0, -9.0]])
    some = Differences.of(policy, sampler, torch.tensor([[True, True, False]]))
    none = Differences.of(policy, sampler, torch.zeros(1, 3, dtype=torch.bool))
    assert none == Differences(0, 0.0, 0.0) and some == Differences(2, 0.5, 0.5)
    assert Differences.join([none, some]) == some and some.mean == 0.25


def test_a_step_that_trained_for_no_time_has_no_finite_speed_and_a_timed_one_has_its_own():
    counts = {"rollouts/generated_tokens": 6.0, "rollouts/scored_tokens": 10.0}
    times = {"time/generate": 2.0, "time/forward": 1.0, "time/backward": 3.0}
    named = ("throughput/sampled_tokens_per_s", "throughput/trained_tokens_per_s")
    assert throughput_metrics(counts | times) == dict(zip(named, (3.0, 2.5), strict=True))
    assert throughput_metrics(counts | {"time/backward": 4.0})[named[1]] == 2.5
    assert throughput_metrics(counts)[named[0]] == 6e9


def test_groups_that_only_cut_completions_vary_teach_nothing():
    """Rewards 1, 1, 0 with the 0 cut off: without it the group has no variance, and dynamic sampling may replace it."""
    rewards = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    rollouts = Rollouts.pack([[1]] * 2, [[2]] * 6, [[-1.0]] * 6, [False, False, True] * 2, ["x"] * 6, 3, 0)
    batch = PromptBatch([Prompt("p", (), "")] * 2, [[1]] * 2, [0, 1])
    masked, plain = (
        GradedGroups(batch, rollouts, {"math": rewards}, rewards, [0, 0], masks) for masks in (True, False)
    )
    assert (masked.varied.tolist(), plain.varied.tolist()) == ([False, True], [True, True])
    for step in (GradedGroups.join([masked, masked]), masked.of_groups([0, 1])):
        assert step.masks_truncated
    torch.testing.assert_close(masked.compared, torch.tensor([[1.0, 1.0, NAN], [1.0, 0.0, NAN]]), equal_nan=True)
    logged = Completions.of(masked, np.array([0.5, 0.75, 9.0])).metrics(0)
    assert logged["groups/effective"] == 1
    assert (logged["plan/difficulty"], logged["plan/pass_rate"]) == (0.625, pytest.approx(0.5))
    assert "plan/difficulty" not in Completions.of(masked, np.full(3, NAN)).metrics(0)


class OneNatAToken(Reference):
    """A reference that finds every token e times less likely than the sampler did."""

    def logprobs(self, scorer, step, cut):
        scored = torch.zeros_like(step.sampler_logprobs)
        scored[step.scored] = (step.sampler_logprobs - 1.0)[step.scored]
        return scored * step.own


def masking(kind: type) -> type:
    return type(f"Masking{kind.__name__}", (kind,), {"masks_truncated": property(lambda self: True)})


class ByLength(ParityReward):
    """One for completions that ended, and what is said for those that were cut off."""

    cut = 1.0

    def __call__(self, prompts, rollouts):
        return torch.where(rollouts.truncated, self.cut, 1.0).view(len(prompts), rollouts.group_size)


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_row_that_is_not_trained_on_has_no_say_in_a_baseline(kind, tiny, tmp_path, monkeypatch):
    """Three equal completions and a longer one that is cut off, with a KL of 1 nat a token in the reward.

    The three have the same reward and the same penalty, so no advantage, whatever the fourth earns.
    """
    monkeypatch.setattr("saerl_lightning.training.grpo.Reference", OneNatAToken)
    for earned in (1.0, 0.0, 5.0):
        reward = ByLength()
        reward.cut = earned
        grpo = module(
            tiny,
            engine=ScriptedEngine(["12", "12", "12", "12 12 12"]),
            rewards=[reward],
            objective=masking(kind)(kl=KLPenalty(0.5, "k1", "reward")),
            sampling=Sampling(group_size=4, max_tokens=3),
        )
        fit(grpo, data(batch_size=2), trainer(tmp_path, 1))
        assert grpo.last_step.rollouts.truncated.tolist() == [False, False, False, True] * 2
        assert grpo.last_step.advantages.abs().max() < 1e-6


def test_penalties_make_the_baseline_that_was_worked_out_by_hand(tiny, tmp_path, monkeypatch):
    """Lengths 2, 3, 4 (the end included) and a cut one: rewards 1 - 0.5, 1 - 0.75, 1 - 1, mean 0.25; the cut one has 0."""
    monkeypatch.setattr("saerl_lightning.training.grpo.Reference", OneNatAToken)
    grpo = module(
        tiny,
        engine=ScriptedEngine(["1", "12", "123", "123456"]),
        rewards=[ByLength()],
        objective=masking(RLOO)(kl=KLPenalty(0.25, "k1", "reward")),
        sampling=Sampling(group_size=4, max_tokens=4),
    )
    fit(grpo, data(batch_size=1), trainer(tmp_path, 1))
    assert grpo.last_step.rollouts.completion_lengths.tolist() == [2, 3, 4, 4]
    expected = torch.tensor([[0.5 - 0.125, 0.0, 0.0 - 0.375, 0.0]])  # each less the mean of the other two
    torch.testing.assert_close(grpo.last_step.advantages, expected, atol=1e-6, rtol=0)


# -- what must be the policy's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.9, max_tokens=6), Sampling(top_k=5, max_tokens=6)])
def test_a_kl_in_the_reward_wants_the_samplers_full_support(tiny, tmp_path, sampling):
    """The sampler's log-probabilities are then the policy's plus the logarithm of the mass that was kept."""
    objective = GRPO(kl=KLPenalty(0.1, where="reward"))
    with pytest.raises(InputError, match="a KL in the reward would be biased"):
        fit(module(tiny, sampling=sampling, guard=None, objective=objective), data(), trainer(tmp_path, 1))
    assert not any(GRPO(kl=kl).reads_sampler for kl in (None, KLPenalty(0.1), KLPenalty(0.0, where="reward")))


def test_an_objective_of_ones_own_reads_the_sampler_where_it_corrects():
    class Own(Objective):
        corrects_sampler = True
        advantages = __call__ = None

    assert Own().reads_sampler
    assert not inspect.isabstract(Own)


# -- several updates a batch -------------------------------------------------------------------------------------------


def test_tables_of_completions_are_due_by_optimiser_steps(tiny, tmp_path):
    """Three updates a batch and a table every four steps: after 3 (the first batch), 6 (past 4), 9 (past 8) and 12."""
    for updates, every, expected in ((3, 4, [3, 6, 9, 12]), (2, 50, [2]), (1, 2, [1, 2, 4])):
        folder = tmp_path / f"{updates}"
        folder.mkdir()
        run = trainer(folder, 4 * updates, (CompletionTable(every_n_steps=every, prompts=1),))
        fit(module(tiny, updates_per_batch=updates), data(), run)
        rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
        assert sorted({row["step"] for row in rows}) == expected


class Countdown(Objective):
    """Logs plain numbers, and a loss that is 1 in the first update and 3 in the second."""

    def __init__(self) -> None:
        self.calls = 0
        self.metrics = {"own/mean": 0.5, "own/min": 2.0, "own/max": 2.0}

    def advantages(self, rewards):
        return rewards

    def __call__(self, inputs):
        self.calls += 1
        value = 2.0 * self.calls - 1.0
        self.metrics["own/min"] = self.metrics["own/max"] = value
        return inputs.logprobs.sum() * 0 + value, self.metrics


def test_several_updates_are_averaged_and_their_extremes_kept(tiny, tmp_path):
    """An objective's own numbers may be plain floats in a dictionary that it keeps."""
    record, objective = Record(), Countdown()
    fit(module(tiny, objective=objective, updates_per_batch=2), data(), trainer(tmp_path, 2, (record,)))
    row = record.rows[0]
    assert (row["loss"], row["own/mean"], row["own/min"], row["own/max"]) == (2.0, 0.5, 1.0, 3.0)
    assert objective.metrics.keys() == {"own/mean", "own/min", "own/max"}
