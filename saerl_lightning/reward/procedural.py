"""Scores answers to reasoning-gym questions with the task's own scorer. Grader processes import this: no torch."""

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
    """Scores an answer: 1 if the task's scorer gives full marks, else 0 (some scorers give small marks for anything).

    Args:
        grading: Recipe of the entry, written by `ReasoningGymPrompts`.
        question: Text of the question, to check that the rebuilt entry is the same.
        answer: Answer of the completion.

    Raises:
        ValueError: if the entry can't be rebuilt, or the scorer fails on the correct answer too.
    """
    dataset, entry = _entry(grading)
    if entry["question"] != question:
        raise ValueError(f"the question rebuilt from {grading} is another one; is PYTHONHASHSEED the same?")
    try:
        return float(dataset.score_answer(answer, entry) == 1.0)
    # A scorer that fails on an unusual text but accepts the correct answer works: the text is a wrong answer.
    except Exception as error:
        if not answer or float(dataset.score_answer(str(entry["answer"]), entry)) == 1.0:
            return 0.0
        raise ValueError(f"the scorer of {grading} fails on the gold answer") from error


# Cached, because the completions of a prompt share its entry, which may take a second to make.
@lru_cache(maxsize=4096)
def _entry(grading: str) -> tuple[ProceduralDataset, dict]:
    recipe = json.loads(grading)
    dataset = _dataset(recipe["task"], json.dumps(recipe["config"], sort_keys=True), recipe["size"], recipe["seed"])
    return dataset, dataset[recipe["index"]]


@lru_cache(maxsize=64)
def _dataset(task: str, config: str, size: int, seed: int) -> ProceduralDataset:
    from reasoning_gym import create_dataset

    return create_dataset(task, **json.loads(config), size=size, seed=seed)
