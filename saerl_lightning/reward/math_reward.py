"""MathReward: grades mathematical answers, by exact numbers in the trainer and by math-verify in killable processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.ranges import Deadline, Finite, Workers, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import prepare_symbolic, quick_verdict, symbolic_verdict
from saerl_lightning.reward.reward import Reward, require_answer
from saerl_lightning.reward.workers import WorkerPool


class MathReward(Reward):
    r"""Gives 1 for a correct mathematical answer and 0 for a wrong one.

    The answer is at the last mark: a `\boxed`, `<answer>` tags, or a sentence such as "the answer is 5". Without a mark
    it is the last formula or number. Numbers are compared exactly; lists, intervals, units, bases and choices (A to J)
    by their meaning; formulas by math-verify. `docs/howto/reward.md` lists the rules.

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
        self.pool = WorkerPool(workers, deadline_s, prepare_symbolic)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts without an answer.

        Raises:
            InputError: naming the first one.
        """
        for prompt in prompts:
            require_answer(prompt, "MathReward")

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Grades every completion. Equal answers to a question are graded once."""
        group = rollouts.group_size
        pairs = [(prompts[row // group].answer, text) for row, text in enumerate(rollouts.texts)]  # R
        verdicts = {pair: quick_verdict(*pair) for pair in pairs}
        hard = [pair for pair, verdict in verdicts.items() if verdict is None]
        verdicts.update(zip(hard, self.pool.map(symbolic_verdict, hard), strict=True))
        scores = torch.tensor([verdicts[pair] for pair in pairs], device=rollouts.mask.device)  # (R,)
        return scores.view(len(prompts), group)

    @property
    def last_failure(self) -> str:
        """What the last failed job did."""
        return self.pool.last_failure

    def close(self) -> None:
        """Kills the grader processes."""
        self.pool.close()
