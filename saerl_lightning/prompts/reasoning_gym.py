"""Generates prompts with reasoning-gym's procedural tasks, which `ReasoningGymReward` grades with the tasks' own scorers."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, Positive, Seed, Share, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from reasoning_gym.factory import ProceduralDataset

# Measured with reasoning-gym 0.1.25: these tasks iterate over sets of strings, so their questions depend on Python's
# hash seed.
HASH_SEEDED = frozenset({"codeio", "isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note"})

# Also measured: a policy would learn to exploit these scorers instead of solving the task.
BROKEN_SCORERS = {
    "coin_flip": "gives full marks to any prefix of the gold answer, such as 0 for 0.5",
    "game_of_life_halting": "gives full marks to every text",
}


# Largest number of questions generated per wanted question, if `part` or `distinct` rejects some.
TRIES = 100


class ReasoningGymPrompts(PromptSource):
    """A mixture of reasoning-gym tasks. Equal arguments give equal prompts.

    Args:
        tasks: Weight of each task. Its share of the prompts is weight / (sum of weights), rounded to whole prompts.
        size: Total number of prompts.
        seed: Seed of the questions and of their order. Give validation sets another seed than training.
        configs: Arguments of each task's reasoning-gym configuration, such as {"chain_sum": {"max_terms": 3}}.
        part: Range of shares, such as [0, 0.8], that selects questions by a hash of their text. Sets with disjoint
            ranges have no question in common, however small a task is; null takes all questions.
        distinct: Whether each question may occur only once.
    """

    def __init__(
        self,
        tasks: dict[str, Positive],
        size: Count,
        seed: Seed = 0,
        configs: dict[str, dict] | None = None,
        part: tuple[Share, Share] | None = None,
        distinct: bool = False,
    ) -> None:
        self.tasks = tasks
        self.size = size
        self.seed = seed
        self.configs = configs
        self.part = part
        self.distinct = distinct
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Generates the prompts and shuffles them.

        Raises:
            InputError: if a task, weight, size or configuration is invalid, or a task gives no correct answer.
        """
        self._check()
        prompts = [
            prompt for task, count in _shares(self.tasks, self.size).items() for prompt in self._make(task, count)
        ]
        random.Random(self.seed).shuffle(prompts)
        return prompts

    def _check(self) -> None:
        from reasoning_gym.factory import DATASETS

        if not self.tasks:
            raise InputError("tasks is empty; write at least one, as {chain_sum: 1.0}")
        if self.part is not None and not 0 <= self.part[0] < self.part[1] <= 1:
            raise InputError(
                f"part is {list(self.part)}; write two shares, as [0, 0.8] and [0.8, 1] for two sets apart"
            )
        for task in [*self.tasks, *(self.configs or {})]:
            if task not in DATASETS or task == "composite":
                near = difflib.get_close_matches(task, sorted(DATASETS), cutoff=0.4) or sorted(DATASETS)
                raise InputError(f"reasoning-gym has no task {task!r}; did you mean {', '.join(near)}?")
        for task in self.tasks:
            if task in BROKEN_SCORERS:
                raise InputError(f"the scorer of task {task!r} {BROKEN_SCORERS[task]}; leave the task out")
        if unused := sorted(set(self.configs or {}) - set(self.tasks)):
            raise InputError(f"configs names {', '.join(unused)}, which is not among the tasks; add it there")
        if (unsteady := sorted(HASH_SEEDED & set(self.tasks))) and not os.environ.get("PYTHONHASHSEED", "").isdigit():
            raise InputError(
                f"the questions of {', '.join(unsteady)} change with Python's hash seed, so neither a resumed run nor "
                f"the grader would see the same ones; start with PYTHONHASHSEED=0, or leave the task out"
            )

    def _make(self, task: str, count: int) -> list[Prompt]:
        if count == 0:
            return []
        config = json.dumps((self.configs or {}).get(task, {}), sort_keys=True)
        seed = _far_seed(task, self.seed)
        drawn = count if self.part is None and not self.distinct else count * TRIES
        dataset = _dataset(task, config, drawn, seed)
        recipe = {"task": task, "seed": seed, "size": drawn, "config": json.loads(config)}
        uid = f"reasoning_gym/{task}/{self.seed}"
        made = (_prompt(f"{uid}/{index}", dataset[index], {**recipe, "index": index}) for index in range(drawn))
        prompts = list(itertools.islice(self._wanted(made), count))
        if len(prompts) < count:
            raise InputError(
                f"{drawn} questions of task {task!r} held only {len(prompts)} that part and distinct let through, and "
                f"{count} are wanted; write a smaller size, a larger part, or a larger task in configs"
            )
        return prompts

    def _wanted(self, made: Iterable[Prompt]) -> Iterator[Prompt]:
        """Yields the prompts whose question is inside `part`, and new if `distinct` is set."""
        low, high = self.part or (0.0, 1.0)
        seen: set[str] = set()
        for prompt in made:
            text = prompt.normalised_text
            if low <= _hash_position(text) < high and not (self.distinct and text in seen):
                seen.add(text)
                yield prompt


def _hash_position(text: str) -> float:
    """Maps a text to a pseudo-random number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _far_seed(task: str, seed: int) -> int:
    """Derives a seed that is far from those of neighbouring seeds.

    reasoning-gym generates entry i of seed s from s + i. Seeds 0 and 1 would share all questions but one, and
    validation would contain training questions.
    """
    return int.from_bytes(hashlib.sha256(f"{task}/{seed}".encode()).digest()[:4], "big") >> 1  # 31 bits, for numpy


def _shares(tasks: dict[str, float], size: int) -> dict[str, int]:
    """Computes the number of prompts per task by the largest-remainder method, so that they add up to `size`."""
    exact = {task: size * weight / math.fsum(tasks.values()) for task, weight in tasks.items()}
    counts = {task: int(share) for task, share in exact.items()}
    by_remainder = sorted(tasks, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: size - sum(counts.values())]:
        counts[task] += 1
    return counts


def _dataset(task: str, config: str, size: int, seed: int) -> ProceduralDataset:
    from reasoning_gym import create_dataset

    try:
        return create_dataset(task, **json.loads(config), size=size, seed=seed)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"configs.{task} is {config}, which the task refuses: {error}") from error


def _prompt(uid: str, entry: dict, recipe: dict) -> Prompt:
    """Converts an entry to a prompt. `recipe` lets the grader rebuild the entry, which is not always plain JSON."""
    answer = "" if entry["answer"] is None else str(entry["answer"])
    if not answer.strip():
        raise InputError(f"task {recipe['task']!r} gives no gold answer ({uid}); leave the task out")
    difficulty = entry["metadata"].get("difficulty")
    return Prompt.asking(
        uid=uid,
        question=entry["question"],
        answer=answer,
        source="reasoning_gym",
        topic=recipe["task"],
        labels={"difficulty": float(difficulty)} if isinstance(difficulty, int | float) else {},
        grading=json.dumps(recipe, sort_keys=True),
    )
