"""Scores answers to reasoning-gym questions with the task's own scorer. Grader processes import it: no torch here."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reasoning_gym.factory import ProceduralDataset


def prepare_procedural() -> None:
    """Imports reasoning-gym before the first job."""
    import reasoning_gym  # noqa: F401


def score(grading: str, question: str, answer: str) -> float:
    """Scores an answer: 1 where the task's scorer gives full marks, else 0 (some scorers give crumbs for junk).

    Args:
        grading: the recipe of the entry, as `ReasoningGymPrompts` wrote it.
        question: what was asked, to be sure that the rebuilt entry is the same.
        answer: what the completion answered.

    Raises:
        ValueError: if the entry can't be rebuilt, or its scorer fails even on the gold answer.
    """
    dataset, entry = _entry(grading)
    if entry["question"] != question:
        raise ValueError(f"the question rebuilt from {grading} is another one; is PYTHONHASHSEED the same?")
    try:
        return float(dataset.score_answer(answer, entry) == 1.0)
    except Exception as error:  # a scorer may choke on junk, which is a wrong answer, or be broken, which is not
        if not answer or float(dataset.score_answer(str(entry["answer"]), entry)) == 1.0:
            return 0.0
        raise ValueError(f"the scorer of {grading} fails on the gold answer") from error


@lru_cache(maxsize=4096)  # the G completions of a prompt share its entry, which may take a second to make
def _entry(grading: str) -> tuple[ProceduralDataset, dict]:
    recipe = json.loads(grading)
    dataset = _dataset(recipe["task"], json.dumps(recipe["config"], sort_keys=True), recipe["size"], recipe["seed"])
    return dataset, dataset[recipe["index"]]


@lru_cache(maxsize=64)
def _dataset(task: str, config: str, size: int, seed: int) -> ProceduralDataset:
    from reasoning_gym import create_dataset

    return create_dataset(task, **json.loads(config), size=size, seed=seed)
