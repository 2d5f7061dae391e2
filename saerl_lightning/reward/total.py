"""Grades rollouts with several rewards, and adds them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


def grade(rewards: Sequence[Reward], prompts: Sequence[Prompt], rollouts: Rollouts) -> dict[str, Float[Tensor, "P G"]]:
    """Scores every completion by every reward, under the rewards' names.

    Raises:
        InputError: if a reward returns another shape than one number a completion.
    """
    shape = (len(prompts), rollouts.group_size)
    scores: dict[str, Tensor] = {}
    for reward in rewards:
        values = reward(prompts, rollouts)
        if tuple(values.shape) != shape:
            raise InputError(f"{type(reward).__name__} returned shape {tuple(values.shape)}; return {shape}, (P, G)")
        scores[reward.name] = values.float().cpu()
    return scores


def weighted_sum(rewards: Sequence[Reward], scores: Mapping[str, Float[Tensor, "P G"]]) -> Float[Tensor, "P G"]:
    """The number that is maximised; NaN where any grader with a weight failed."""
    weighted = [reward.weight * scores[reward.name] for reward in rewards if reward.weight != 0]
    return torch.stack(weighted).sum(0)


def require_distinct(rewards: Sequence[Reward]) -> None:
    """Refuses an empty list, and two rewards that would share a name in the logs.

    Raises:
        InputError: naming the rewards.
    """
    names = [reward.name for reward in rewards]
    if not any(reward.weight != 0 for reward in rewards):
        raise InputError(f"rewards {names or '[]'} have no weight between them; write e.g. `rewards: [MathReward]`")
    if len(set(names)) < len(names):
        raise InputError(f"two rewards share a name in {names}; subclass one and give it a `name` of its own")
