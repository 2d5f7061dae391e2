"""Rewards that fail on every completion, or give no number, stop the run at the first step and are named."""

from __future__ import annotations

import math

import pytest
import torch

from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.records import Sampling
from saerl_lightning.reward.procedural import score
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.workers import WorkerPool
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from tests.training.conftest import ParityReward, Sums, data, fit, module, trainer
from tests.training.test_grpo_module import Record


class Constant(Reward):
    """The same for every completion."""

    def __init__(self, value: object, weight: float = 1.0) -> None:
        self.value = value
        self.weight = weight

    def __call__(self, prompts, rollouts):
        return (
            torch.full((len(prompts), rollouts.group_size), self.value) if isinstance(self.value, float) else self.value
        )


class Broken(Reward):
    """Grades by a job that raises."""

    def __init__(self) -> None:
        self.pool = WorkerPool(1, 5.0)

    def __call__(self, prompts, rollouts):
        jobs = [("{", "question", "answer")] * len(rollouts.texts)
        return torch.tensor(self.pool.map(score, jobs)).view(len(prompts), rollouts.group_size)

    @property
    def last_failure(self):
        return self.pool.last_failure

    def close(self):
        self.pool.close()


@pytest.mark.parametrize("refill", [None, DynamicSampling(max_rounds=2)])
def test_a_step_without_a_grade_stops_the_run_and_names_the_reward(tiny, tmp_path, refill):
    record, rewards = Record(), [ParityReward(), Constant(math.nan)]
    made = module(tiny, rewards=rewards, dynamic_sampling=refill)
    with pytest.raises(RunStopped, match=r"the reward 'constant' \(Constant\) failed on 32 of 32\. Nothing") as stopped:
        fit(made, data(), trainer(tmp_path, 3, (record,)))
    assert "parity" not in str(stopped.value) and not record.rows


def test_the_last_failure_is_told(tiny, tmp_path):
    with pytest.raises(RunStopped, match=r"failed on 32 of 32, at last because a job raised JSONDecodeError\("):
        fit(module(tiny, rewards=[Broken()]), data(), trainer(tmp_path, 3))


def test_a_failed_reward_without_weight_stops_nothing(tiny, tmp_path):
    record = Record()
    fit(module(tiny, rewards=[ParityReward(), Constant(math.nan, 0.0)]), data(), trainer(tmp_path, 1, (record,)))
    assert record.rows[0]["reward/constant/failed_frac"] == 1


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_reward_is_named_and_the_learning_rate_is_not(tiny, tmp_path, value):
    with pytest.raises(
        InputError, match=rf"the reward 'constant' \(Constant\) gave {value} for prompt 'sum/"
    ) as refused:
        fit(module(tiny, rewards=[Constant(value)]), data(), trainer(tmp_path, 1))
    assert "learning rate" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")  # Lightning's own
@pytest.mark.parametrize(("value", "said"), [(None, "None"), ([1.0], "a list")])
def test_what_is_no_tensor_is_named(tiny, tmp_path, value, said):
    """Where a step trains, and where a set is evaluated."""
    made, sums = module(tiny, rewards=[Constant(value)]), {"sums": ValidationSet(Sums(4), keep_trained=True)}
    with pytest.raises(InputError, match=f"Constant returned {said}; return a tensor of shape"):
        fit(made, data(), trainer(tmp_path, 1))
    with pytest.raises(InputError, match=rf"Constant returned {said}; return a tensor of shape \(\d, 2\)"):
        trainer(tmp_path, 1).validate(made, data(val=sums, val_sampling=Sampling(group_size=2, max_tokens=4)))


def test_a_trainer_without_a_datamodule_is_told_what_to_write(tiny, tmp_path):
    with pytest.raises(InputError, match=r"the trainer got none; write trainer\.fit\(module, data\)"):
        trainer(tmp_path, 1).fit(module(tiny), [1])
