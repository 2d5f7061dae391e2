"""VerifiersReward: the rewards of an environment of the verifiers package, called in killable processes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.environment import Environment, ident_of
from saerl_lightning.ranges import Count, Deadline, Finite, Workers, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.failures import Failures
from saerl_lightning.reward.jobs.environment_score import Played, Scored, prepare, score
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.workers import WorkerPool

GRACE_S = 2.0  # a reply is given up on by its own process first, which costs that reply alone


class VerifiersReward(Reward):
    """Gives the sum of an environment's rewards times their weights, as verifiers does for the same reply.

    It grades the prompts of `VerifiersEnv` with the same environment and arguments. Each reward before its weight, and each
    metric, is logged as `reward/<name>/parts/<part>`. A reward that raises, crashes, overruns its deadline or gives NaN
    costs the completion that caused it: NaN, not graded.

    Args:
        environment: Id or file of the environment, as in `VerifiersEnv`.
        arguments: Fields of the environment's configuration, as in `VerifiersEnv`; rewards' weights and judges under `task`.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.
        workers: Number of grader processes on a machine, shared by the training processes there.
        together: Number of completions that a process grades side by side; more than 1 helps rewards that wait for a
            server, such as judges.
        deadline_s: Seconds that all rewards of a completion may take.
    """

    def __init__(
        self,
        environment: str,
        arguments: dict[str, Any] | None = None,
        weight: Finite = 1.0,
        name: str | None = None,
        workers: Workers = 2,
        together: Count = 1,
        deadline_s: Deadline = 10.0,
    ) -> None:
        self.environment = environment
        self.arguments = arguments
        self.weight = weight
        self._name = name
        self.together = together
        self.deadline_s = deadline_s
        self.failures = Failures()  # kinds are what a reward did
        require_in_range(self, workers=workers)
        self._source = environment, json.dumps(arguments or {})
        self.pool = WorkerPool(workers, deadline_s + GRACE_S, partial(prepare, *self._source))
        self._checked = False
        self._graded: list[Scored] = []

    def check(self) -> None:
        """Loads the environment, without its tasks.

        Raises:
            InputError: if it is not found, its arguments are wrong, or it needs more than one reply.
        """
        Environment.load(self.environment, self.arguments or {})

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts of other sources, and environments that can't be played in one reply.

        Raises:
            InputError: naming the first such prompt, or what the environment lacks.
        """
        environment = Environment.load(self.environment, self.arguments or {})
        for prompt in prompts:
            environment.require_playable(environment.task(self._row(prompt)))
        self._checked = True

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion.

        Raises:
            InputError: if a prompt was not made by `VerifiersEnv` of this environment.
        """
        if not self._checked:
            self.require(prompts)
        rows = [self._row(prompt) for prompt in prompts]
        given = zip(rollouts.texts, rollouts.truncated.tolist(), rollouts.starts.tolist(), strict=True)
        lengths = rollouts.completion_lengths.tolist()
        replies = [Played(rows[row // rollouts.group_size], *said, lengths[row]) for row, said in enumerate(given)]  # R
        found = self._scored(replies)
        self._graded += found
        for row, scored in enumerate(found):
            if scored.failure:
                uid, text = prompts[row // rollouts.group_size].uid, rollouts.texts[row]
                self.failures.note(f"the environment {self.environment!r}", scored.failure, uid, text)
        return torch.tensor([scored.total for scored in found]).view(len(prompts), rollouts.group_size)

    def drain_parts(self) -> dict[str, list[float]]:
        """Returns what completions got of each reward, before its weight, and of each metric, since the last call."""
        kept, self._graded = self._graded, []
        names = dict.fromkeys(name for scored in kept for name in scored.parts)
        found = {name: [s.parts[name] for s in kept if not math.isnan(s.parts.get(name, math.nan))] for name in names}
        return {name: values for name, values in found.items() if values}

    @property
    def last_failure(self) -> str:
        """What the last reward that failed did, and for which completion."""
        return self.failures.last

    def close(self) -> None:
        """Kills the processes."""
        self.pool.close()

    def _scored(self, replies: Sequence[Played]) -> list[Scored]:
        """Scores of all replies; where a process was lost, its replies are tried one by one."""
        parts = [replies[start : start + self.together] for start in range(0, len(replies), self.together)]
        jobs = [(*self._source, part, self.deadline_s) for part in parts]
        found: list[Scored] = []
        for part, result in zip(parts, self.pool.run(score, jobs), strict=True):
            if not result.failure:
                found += result.value
            elif len(part) == 1:
                found.append(Scored(failure=result.failure))
            else:
                found += self._alone(part)
        return found

    def _alone(self, replies: Sequence[Played]) -> list[Scored]:
        results = self.pool.run(score, [(*self._source, [reply], self.deadline_s) for reply in replies])
        return [Scored(failure=each.failure) if each.failure else each.value[0] for each in results]

    def _row(self, prompt: Prompt) -> Mapping[str, Any]:
        """The task's data of a prompt, which must be of this environment."""
        try:
            grading = json.loads(prompt.grading or "null")
        except ValueError:
            grading = None
        known = grading.get("environment") if isinstance(grading, dict) else None
        if (
            not isinstance(grading, dict)
            or known != ident_of(self.environment)
            or not isinstance(grading.get("row"), dict)
        ):
            source = (
                f"of the environment {known!r}" if known else f"not of VerifiersEnv (its source is {prompt.source!r})"
            )
            raise InputError(
                f"prompt {prompt.uid!r} is {source}, and VerifiersReward grades those of {self.environment!r}; write "
                f"data.train: VerifiersEnv with environment: {self.environment}, or another reward"
            )
        return grading["row"]
