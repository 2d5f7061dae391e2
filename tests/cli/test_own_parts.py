"""Classes of the user's own module, named by their class path: those that work, and those that do not."""

import json
import sys

import pytest
import torch

OWN_PARTS = '''
import torch
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.objective import Objective
from saerl_lightning.reward.reward import Reward


class DigitShareReward(Reward):
    """Likes digits."""

    def __init__(self, bonus: float = 0.0, weight: float = 1.0) -> None:
        self.bonus = bonus
        self.weight = weight

    def __call__(self, prompts, rollouts):
        shares = [sum(map(str.isdigit, text)) / max(1, len(text)) + self.bonus for text in rollouts.texts]
        return torch.tensor(shares).view(len(prompts), rollouts.group_size)


class FlatReward(Reward):
    """Forgets the groups."""

    def __call__(self, prompts, rollouts):
        return torch.zeros(len(rollouts.texts))


class BreaksLater(Objective):
    """Is GRPO for some losses, then NaN."""

    def __init__(self, good: int = 2) -> None:
        self.left = good
        self.grpo = GRPO()

    def advantages(self, rewards):
        return self.grpo.advantages(rewards)

    def __call__(self, inputs):
        loss, metrics = self.grpo(inputs)
        self.left -= 1
        return (loss if self.left >= 0 else loss * float("nan")), metrics
'''


@pytest.fixture
def own_parts(workplace, monkeypatch):
    (workplace.folder / "own_parts.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(workplace.folder)
    yield
    sys.modules.pop("own_parts", None)


def test_a_reward_of_the_users_own_is_named_by_its_class_path(workplace, door, own_parts):
    reward = [{"class_path": "own_parts.DigitShareReward", "init_args": {"bonus": 5.0}}]
    assert door(workplace.command("fit", "--trainer.max_steps=1", f"--model.rewards={json.dumps(reward)}")).code == 0
    shown = [json.loads(line) for line in (workplace.run_dir / "completions.jsonl").read_text().splitlines()]
    assert len(shown) == 8  # two prompts in groups of four
    for each in shown:
        digits = sum(map(str.isdigit, each["completion"])) / max(1, len(each["completion"]))
        assert each["reward"] == pytest.approx(5 + digits)


def test_a_reward_of_the_wrong_shape_is_refused(workplace, door, own_parts):
    ended = door(workplace.command("fit", '--model.rewards=[{"class_path": "own_parts.FlatReward"}]'))
    assert ended.code == 2 and "FlatReward returned shape (8,); return (2, 4), (P, G)" in ended.error
    assert not workplace.run_dir.exists()


def test_nan_in_the_loss_stops_the_run_names_the_batch_and_keeps_the_last_checkpoint(workplace, door, own_parts):
    steady = ["--data.shuffle_seed=null", "--checkpoint.every_n_train_steps=1"]
    breaking = ["--model.objective=own_parts.BreaksLater", "--model.objective.good=2"]
    ended = door(workplace.command("fit", *steady, *breaking))
    assert ended.code == 2
    assert "the loss is nan" in ended.error and "train-4, train-5" in ended.error
    saved = torch.load(workplace.last, weights_only=True)
    assert saved["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert door(workplace.command("fit", *steady, "--ckpt_path=last")).code == 0  # goes on with the objective mended
    assert torch.load(workplace.last, weights_only=True)["global_step"] == 3
