"""LengthReward: a soft penalty on completions that come close to the length limit."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, Finite, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.reward import Reward


class LengthReward(Reward):
    """Penalises long completions: 0 up to max_tokens - buffer, then linearly down to -1 at max_tokens.

    Source: DAPO, arXiv 2503.14476, eq. 13 (soft overlong punishment).

    Args:
        max_tokens: Length at which the penalty is full, in tokens; usually the `max_tokens` of the sampling.
        buffer: Length of the linear part before it, in tokens.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if the buffer is empty or longer than max_tokens.
    """

    def __init__(self, max_tokens: Count, buffer: Count, weight: Finite = 1.0, name: str | None = None) -> None:
        if not 0 < buffer <= max_tokens:
            raise InputError(f"buffer is {buffer} and max_tokens {max_tokens}; write 1 <= buffer <= max_tokens")
        self.max_tokens = max_tokens
        self.buffer = buffer
        self.weight = weight
        self._name = name
        require_in_range(self)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion by its length in tokens."""
        free = self.max_tokens - self.buffer
        scores = ((free - rollouts.completion_lengths) / self.buffer).clamp(-1.0, 0.0)  # (R,)
        return scores.view(len(prompts), rollouts.group_size)
