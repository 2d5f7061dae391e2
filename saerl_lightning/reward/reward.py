"""Reward: the interface of rewards, which give one score to a completion, and the weighted sum of several."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import InputError, require_name, shown
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import last_answer

# The grade of a completion that a reward does not apply to: a negative zero adds nothing to any sum, and can be told from a 0
# that was given.
ABSTAINED = -0.0


class Reward(ABC):
    """Scores completions. Subclasses set `weight` in the constructor.

    Attributes:
        weight: Factor in the weighted sum of the rewards.
        may_abstain: Whether -0.0 means that the reward does not apply to a completion, which is left out of its logged mean.
    """

    may_abstain: bool = False
    weight: float = 1.0
    _name: str | None = None  # given by the user
    _seconds: float = 0.0

    @property
    def name(self) -> str:
        """Name in the logs: the given one, else the class name without 'Reward', in snake case."""
        return self._name or re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Reward")).lower()

    def vote(self, text: str) -> str:
        """Returns the answer that counts in maj@k; "" for none. By default the answer as it is graded."""
        return last_answer(text)

    @property
    def last_failure(self) -> str:
        """Reason of the last NaN, such as "raised ValueError(...)"; "" if it is not known."""
        return ""

    def check(self) -> None:
        """Refuses a grader that can't grade anything, such as a server that does not answer; nothing by default.

        It is called once, before data or weights are loaded.

        Raises:
            InputError: naming what is wrong with the grader.
        """

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that can't be graded, before anything is sampled for them; nothing by default.

        Args:
            prompts: All prompts that may be graded.

        Raises:
            InputError: naming what the prompts lack.
        """

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion; NaN if the grader itself failed (time-out or crash), which is not a wrong answer."""

    def interrupt(self) -> None:
        """Ends a wait for grades in another thread, because the step is given up. By default does nothing."""

    def close(self) -> None:
        """Ends processes that the reward started. By default does nothing. Grading again starts them again."""

    def drain_seconds(self) -> float:
        """Returns the seconds that `grade` waited since the last call, and sets them to 0."""
        spent, self._seconds = self._seconds, 0.0
        return spent

    def drain_counts(self) -> dict[str, float]:
        """Returns what else is counted since the last call, by name, for the log of a step; nothing by default."""
        return {}

    def drain_parts(self) -> dict[str, list[float]]:
        """Returns what completions got of each part of the reward since the last call, by name; by default nothing.

        The log has the mean of each over the completions of all processes that have it.
        """
        return {}


def grade(rewards: Sequence[Reward], prompts: Sequence[Prompt], rollouts: Rollouts) -> dict[str, Float[Tensor, "P G"]]:
    """Scores every completion with every reward. Returns the scores by the rewards' names.

    Raises:
        InputError: if a reward returns a wrong shape, or infinity.
    """
    scores: dict[str, Tensor] = {}
    for reward in rewards:
        began = time.perf_counter()
        scores[reward.name] = grade_by(reward, prompts, rollouts)
        reward._seconds += time.perf_counter() - began
    return scores


def grade_by(reward: Reward, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
    """Scores every completion with one reward.

    Raises:
        InputError: if the reward returns a wrong shape, or infinity.
    """
    values, shape = reward(prompts, rollouts), (len(prompts), rollouts.group_size)
    if not isinstance(values, Tensor):
        raise InputError(f"{type(reward).__name__} returned {shown(values)}; return a tensor of shape {shape}, (P, G)")
    if tuple(values.shape) != shape:
        raise InputError(f"{type(reward).__name__} returned shape {tuple(values.shape)}; return {shape}, (P, G)")
    # Adding 0 makes 0.0 of -0.0, which may come of any product.
    scores = values.float().cpu() + (ABSTAINED if reward.may_abstain else 0.0)
    _refuse_infinity(reward, scores, prompts, rollouts)
    return scores


def abstained(scores: Float[Tensor, "P G"]) -> Bool[Tensor, "P G"]:
    """Marks the completions that the reward does not apply to."""
    return scores.eq(0) & scores.signbit()


def _refuse_infinity(
    reward: Reward, scores: Float[Tensor, "P G"], prompts: Sequence[Prompt], rollouts: Rollouts
) -> None:
    if not scores.isinf().any():
        return
    row = int(scores.isinf().flatten().nonzero()[0])
    raise InputError(
        f"the reward '{reward.name}' ({type(reward).__name__}) gave {scores.flatten()[row]:g} for prompt "
        f"{prompts[row // rollouts.group_size].uid!r} and the completion {rollouts.texts[row][:60]!r}; return a number, or "
        "NaN where grading failed"
    )


def no_grades(rewards: Sequence[Reward], scores: Mapping[str, Float[Tensor, "P G"]]) -> str:
    """Explains that no completion of a step has a grade: which rewards failed, how often, and the last reason."""
    said = []
    for reward in rewards:
        failed, count = int(scores[reward.name].isnan().sum()), scores[reward.name].numel()
        if failed and reward.weight != 0:
            why = f", at last because a job {reward.last_failure}" if reward.last_failure else ""
            said.append(f"the reward '{reward.name}' ({type(reward).__name__}) failed on {failed} of {count}{why}")
    return (
        f"no completion of the step could be graded: {'; '.join(said)}. Nothing is learned from such steps; mend the reward, "
        "or the answers it is given"
    )


def weighted_sum(rewards: Sequence[Reward], scores: Mapping[str, Float[Tensor, "P G"]]) -> Float[Tensor, "P G"]:
    """Computes the weighted sum of the rewards; NaN if a grader with a non-zero weight failed."""
    weighted = [reward.weight * scores[reward.name] for reward in rewards if reward.weight != 0]
    return torch.stack(weighted).sum(0)


def require_answer(prompt: Prompt, reward: str) -> None:
    """Refuses a prompt without an answer for a reward that compares with it.

    Raises:
        InputError: naming the prompt, its columns, and the flag that says which of them is the answer.
    """
    if not prompt.answer.strip():
        there = f"; its columns are {', '.join(prompt.columns)}" if prompt.columns else ""
        raise InputError(
            f"prompt {prompt.uid!r} has no answer, and {reward} compares with it{there}; say which column it is, as "
            "--data.columns.answer COLUMN, or write rewards that need none"
        )


def require_distinct(rewards: Sequence[Reward]) -> None:
    """Refuses an empty list, names that can't be part of a metric's name, and rewards with equal names.

    Raises:
        InputError: with the names of the rewards.
    """
    names = [reward.name for reward in rewards]
    for name in names:
        require_name("the reward", name)
    if not any(reward.weight != 0 for reward in rewards):
        raise InputError(f"rewards {names or '[]'} have no weight between them; write e.g. `rewards: [MathReward]`")
    if len(set(names)) < len(names):
        raise InputError(f"two rewards share a name in {names}; give one a `name` of its own")
