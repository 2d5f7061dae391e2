"""RandomReward: a control reward that does not depend on correctness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.ranges import Finite, Seed, Share, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


class RandomReward(Reward):
    """Gives 1 with a fixed probability and else 0, independently of the answer.

    Each reward is a function of the seed, the prompt's uid, the completion's text and its position in the group, so a
    resumed run gives the same rewards. Some policies improve with such rewards (Qwen2.5-Math does), although the
    rewards contain no information.

    Source: "spurious rewards", arXiv 2506.10947.

    Args:
        p: Probability of a reward of 1.
        seed: Seed of the random rewards.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if `p` is not between 0 and 1.
    """

    def __init__(self, p: Share = 0.5, seed: Seed = 0, weight: Finite = 1.0, name: str | None = None) -> None:
        self.p = p
        self.seed = seed
        self.weight = weight
        self._name = name
        require_in_range(self)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Gives a random reward to every completion."""
        size = rollouts.group_size
        rewards = [self._random_reward(prompts[r // size].uid, text, r % size) for r, text in enumerate(rollouts.texts)]
        return torch.tensor(rewards).view(len(prompts), size)

    def _random_reward(self, uid: str, text: str, place: int) -> float:
        key = "\0".join((str(self.seed), uid, str(place), text)).encode(errors="surrogatepass")
        uniform = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64  # in [0, 1)
        return float(uniform < self.p)
