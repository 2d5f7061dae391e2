"""ReasoningGymReward: grades answers by the scorer of the reasoning-gym task, in killable processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Deadline, Finite, Workers, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import given_answer
from saerl_lightning.reward.procedural import prepare_procedural, score
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.workers import WorkerPool


class ReasoningGymReward(Reward):
    r"""Gives 1 if the scorer of the question's reasoning-gym task gives full marks, else 0.

    The answer is inside the last `<answer>` tags, or else in the last `\boxed`, or else the whole text.

    Args:
        weight: Weight of the reward in the weighted sum.
        workers: Number of grader processes on a machine, shared by the training processes there.
        deadline_s: Largest time to grade an answer, in seconds. Beyond it, the grader is killed, and the reward is NaN.
        name: Name of this reward in the logs; null takes the class's.
    """

    def __init__(
        self, weight: Finite = 1.0, workers: Workers = 2, deadline_s: Deadline = 10.0, name: str | None = None
    ) -> None:
        self.weight = weight
        self._name = name
        require_in_range(self, workers=workers, deadline_s=deadline_s)
        self.pool = WorkerPool(workers, deadline_s, prepare_procedural)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Grades every completion. Equal answers to a question are graded once.

        Raises:
            InputError: if a prompt was not made by `ReasoningGymPrompts`.
        """
        for prompt in prompts:
            if not prompt.grading:
                raise InputError(
                    f"prompt {prompt.uid!r} has no reasoning-gym recipe; ReasoningGymReward grades prompts of "
                    f"ReasoningGymPrompts, for others write MathReward"
                )
        group = rollouts.group_size
        asked = [prompts[row // group] for row in range(len(rollouts.texts))]  # R
        answers = [given_answer(text) for text in rollouts.texts]  # R
        jobs = [(prompt.grading, prompt.text, answer) for prompt, answer in zip(asked, answers, strict=True)]
        unique = list(dict.fromkeys(job for job in jobs if job[2]))
        verdicts = dict(zip(unique, self.pool.map(score, unique), strict=True))
        scores = torch.tensor([verdicts.get(job, 0.0) for job in jobs], device=rollouts.mask.device)  # (R,)
        return scores.view(len(prompts), group)

    def vote(self, text: str) -> str:
        """Returns the answer, with words: the content of the tags or the box, or else the whole text."""
        return given_answer(text)

    @property
    def last_failure(self) -> str:
        """What the last failed job did."""
        return self.pool.last_failure

    def close(self) -> None:
        """Kills the grader processes."""
        self.pool.close()
