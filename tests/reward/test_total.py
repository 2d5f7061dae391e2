"""What several rewards come to: the weighted sum, and the reward and the completion that a refusal names."""

import re

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward, grade, no_grades, require_distinct, weighted_sum

PROMPTS = [Prompt.asking(uid, uid, "1") for uid in ("a", "b")]
TEXTS = ["a0", "a1", "a2", "b0", "b1", "b2"]


class Given(Reward):
    """Gives numbers that were written down before."""

    def __init__(self, name: str, values: list[list[float]], weight: float = 1.0) -> None:
        self.called = name
        self.values = torch.tensor(values)
        self.weight = weight

    @property
    def name(self):
        return self.called

    def __call__(self, prompts, rollouts):
        return self.values


def rollouts() -> Rollouts:
    return Rollouts(
        tokens=torch.zeros(6, 1, dtype=torch.long),
        mask=torch.ones(6, 1, dtype=torch.bool),
        logprobs=torch.zeros(6, 1),
        truncated=torch.zeros(6, dtype=torch.bool),
        texts=TEXTS,
        group_size=3,
        weight_version=torch.zeros(6, dtype=torch.long),
    )


def test_rewards_are_added_by_their_weights_and_one_without_weight_has_no_say():
    rewards = [
        Given("one", [[1, 2, 3], [4, 5, 6]], 2.0),
        Given("two", [[1, 0, 1], [0, 1, float("nan")]], -1.0),
        Given("idle", [[float("nan")] * 3] * 2, 0.0),
    ]
    total = weighted_sum(rewards, grade(rewards, PROMPTS, rollouts()))
    assert torch.equal(total[0], torch.tensor([1.0, 4.0, 5.0])) and torch.equal(total[1, :2], torch.tensor([8.0, 9.0]))
    assert total[1, 2].isnan()


@pytest.mark.parametrize(("row", "uid"), [(0, "a"), (2, "a"), (3, "b"), (4, "b")])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_reward_names_its_prompt_and_its_completion(row, uid, value):
    values = torch.zeros(6)
    values[row] = value
    with pytest.raises(
        InputError, match=f"'one' .*gave {value:g} for prompt '{uid}' and the completion '{TEXTS[row]}'"
    ):
        grade([Given("one", values.view(2, 3).tolist())], PROMPTS, rollouts())


def test_rewards_that_all_failed_are_counted():
    rewards = [Given("one", [[float("nan")] * 3, [1, 1, 1]]), Given("two", [[0.0] * 3] * 2)]
    said = no_grades(rewards, grade(rewards, PROMPTS, rollouts()))
    assert "the reward 'one' (Given) failed on 3 of 6" in said and "'two'" not in said


def test_rewards_without_weight_and_of_one_name_are_refused_with_their_names():
    with pytest.raises(InputError, match=re.escape("rewards ['one'] have no weight between them")):
        require_distinct([Given("one", [[1.0]], 0.0)])
    with pytest.raises(InputError, match=re.escape("rewards [] have no weight between them")):
        require_distinct([])
    with pytest.raises(InputError, match=re.escape("two rewards share a name in ['one', 'one']")):
        require_distinct([Given("one", [[1.0]]), Given("one", [[1.0]])])
    require_distinct([Given("one", [[1.0]]), Given("two", [[1.0]], 0.0)])
