"""The random reward: fair, blind to what is said, and the same again after a resume."""

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.random import RandomReward


def drawn(reward: RandomReward, uids: list[str], groups: list[list[str]]):
    flat = [text for group in groups for text in group]
    prompts = [Prompt.asking(uid, "?", "1") for uid in uids]
    blank = [[0.0]] * len(flat)
    packed = Rollouts.pack([[0]] * len(uids), [[1]] * len(flat), blank, [False] * len(flat), flat, len(groups[0]), 0)
    return reward(prompts, packed)


def test_it_gives_ones_as_often_as_asked():
    uids, groups = [f"p{i}" for i in range(500)], [["the same words"] * 4] * 500
    for p, low, high in ((0.5, 0.46, 0.54), (0.1, 0.075, 0.125), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        rewards = drawn(RandomReward(p), uids, groups)
        assert rewards.shape == (500, 4) and set(rewards.unique().tolist()) <= {0.0, 1.0}
        assert low <= rewards.mean().item() <= high
        if 0 < p < 1:
            within = rewards.std(dim=1)  # equal words in one group are told apart by their place
            assert (within > 0).float().mean() > 0.3


def test_a_draw_depends_on_seed_prompt_text_and_place_and_on_nothing_else():
    uids, groups = [f"p{i}" for i in range(64)], [[f"{i} {g}" for g in range(4)] for i in range(64)]
    once = drawn(RandomReward(seed=1), uids, groups)
    assert once.equal(drawn(RandomReward(seed=1), uids, groups))
    assert once[32:].equal(drawn(RandomReward(seed=1), uids[32:], groups[32:]))  # whatever else is in the batch
    for other in (
        drawn(RandomReward(seed=2), uids, groups),
        drawn(RandomReward(seed=1), [f"q{i}" for i in range(64)], groups),
        drawn(RandomReward(seed=1), uids, [[text + "!" for text in group] for group in groups]),
        drawn(RandomReward(seed=1), uids, [group[1:] + group[:1] for group in groups]).roll(1, 1),
    ):
        assert 0.35 < (once == other).float().mean().item() < 0.65


def test_it_is_named_and_refuses_what_is_no_chance():
    assert RandomReward(weight=0.3).name == "random" and RandomReward(weight=0.3).weight == 0.3
    with pytest.raises(InputError, match=r"RandomReward\.p is 1\.5; write a number from 0 to 1"):
        RandomReward(1.5)
