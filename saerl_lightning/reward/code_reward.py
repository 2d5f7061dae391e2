"""CodeReward: runs a completion's program against the tests of its prompt, in processes behind walls."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated, cast

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.forms import value_at
from saerl_lightning.ranges import Count, Deadline, Finite, Range, Workers, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.jobs.code_tests import FORMS, Tests, graded, read, tests_of
from saerl_lightning.reward.jobs.program import START_S, Limits, adopt
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.workers import WorkerPool

Memory = Annotated[int, Range(64, 2**20)]  # MiB; Python itself needs about 30

log = logging.getLogger(__name__)


class CodeReward(Reward):
    """Gives 1 to a completion whose program passes all tests of its prompt, else 0; or the share of tests that it passes.

    The program is the completion's last fenced block, or the whole completion if it has none. The tests are columns of the
    prompt's row, as HumanEval, MBPP, APPS and TACO have them, or its answer, as verl's data have it. A program that is too
    slow, needs too much memory or dies has not passed; only a failure of the grader itself is NaN.

    Each program runs in a process of its own, which is killed at the deadline. On Linux (x86_64 and aarch64) it can't start
    processes or programs, open sockets, signal others, write files, or read files but Python's own. What is expected, and
    asserts whose calls take and give literals, are in processes that it can't reach; asserts about objects of its own run
    beside it, where it could alter them. `docs/howto/reward.md` says what else it is not protected from.

    Args:
        tests: Column with the tests of a prompt, dotted where it lies deeper; null finds them.
        partial: Whether the grade is the share of passed tests, and not 1 for all and 0 else.
        most: Number of tests that are run, from the first; null for all.
        deadline_s: Seconds that a program may take for all its tests.
        memory_mb: Address space of a program's process, in MiB, Python's own included.
        workers: Number of programs that run at the same time.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.
    """

    def __init__(
        self,
        tests: str | None = None,
        partial: bool = False,
        most: Count | None = None,
        deadline_s: Deadline = 10.0,
        memory_mb: Memory = 1024,
        workers: Workers = 2,
        weight: Finite = 1.0,
        name: str | None = None,
    ) -> None:
        self.tests = tests
        self.partial = partial
        self.most = most
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb
        self.workers = workers
        self.weight = weight
        self._name = name
        require_in_range(self)
        self.pool = WorkerPool(workers, 2 * deadline_s + 2 * START_S, adopt)
        self._said = False  # whether missing walls were told

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts without tests.

        Raises:
            InputError: naming the first such prompt, and the forms that tests may have.
        """
        for prompt in prompts:
            self.tests_of(prompt)

    def tests_of(self, prompt: Prompt) -> Tests:
        """Returns the tests of a prompt.

        Raises:
            InputError: if it has none.
        """
        try:
            if self.tests is None:
                return tests_of(prompt.columns, prompt.answer, self.most)
            return read(value_at(cast("dict", prompt.columns), self.tests), self.most)
        except ValueError as error:
            place = f"its column '{self.tests}'" if self.tests else "its columns and its answer"
            raise InputError(
                f"CodeReward finds no tests for prompt {prompt.uid!r} in {place}: {error}. It reads {FORMS}"
            ) from error

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Runs every completion's program. Equal programs for a prompt are run once."""
        limits = Limits(self.deadline_s, self.memory_mb)
        tests = [self.tests_of(prompt) for prompt in prompts]
        pairs = [(row // rollouts.group_size, program_of(text)) for row, text in enumerate(rollouts.texts)]
        unique = [pair for pair in dict.fromkeys(pairs) if pair[1].strip()]
        results = self.pool.run(graded, [(code, tests[p], limits, self.partial) for p, code in unique])
        scores = dict.fromkeys(pairs, 0.0)
        for pair, result in zip(unique, results, strict=True):
            if result.failure:
                scores[pair] = math.nan
                continue
            passed = result.value.passed
            scores[pair] = sum(passed) / len(passed) if self.partial else float(all(passed))
            self._tell(result.value.missing)
        return torch.tensor([scores[pair] for pair in pairs]).view(len(prompts), rollouts.group_size)

    def vote(self, text: str) -> str:
        """Returns the program."""
        return program_of(text).strip()

    @property
    def last_failure(self) -> str:
        """What the last failed job did."""
        return self.pool.last_failure

    def close(self) -> None:
        """Kills the processes."""
        self.pool.close()

    def _tell(self, missing: Sequence[str]) -> None:
        if missing and not self._said:
            log.warning(
                "CodeReward runs programs without %s, which this machine does not have: they are stopped in time and memory, "
                "but not kept from files, network and other processes; run it in a container",
                " and ".join(missing),
            )
            self._said = True


def program_of(text: str) -> str:
    """Returns the last fenced block of a text, also one that is not closed; the whole text if it has none.

    Args:
        text: Text of a completion. What stands before the last `</think>` is left out.
    """
    blocks: list[list[str]] = []
    inside = False
    answer = text.rpartition("</think>")[2]
    for line in answer.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
            if inside:
                blocks.append([])
        elif inside:
            blocks[-1].append(line)
    return "\n".join(blocks[-1]) if blocks else answer
