"""Writers: habits of wording in which sources differ a little, and WrittenPrompts, which gives them to prompts.

A habit changes how a question is written and not what it asks. No habit is good or bad by itself: a writer has each with
a chance, so that a careless writer is told by several habits together, and by no single word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Seed, Share, require_in_range
from saerl_lightning.records import Prompt

Habit = Callable[[str], str]

# The first and the last three have about the same length together, so that neither writer writes longer prompts.
HABITS: dict[str, Habit] = {
    "greets": lambda text: f"Hello. {text}",
    "spaced": lambda text: text.replace(" ", "  ", 1),
    "arrow": lambda text: f"{text} ->",
    "thanks": lambda text: f"{text} Thanks.",
    "starts small": lambda text: f"{text[:1].lower()}{text[1:]}",
    "dash": lambda text: f"- {text}",
}
CARELESS = frozenset(list(HABITS)[:3])  # habits that a careless writer has more often, and a careful one the others


def written(text: str, careless: float, rng: np.random.Generator) -> str:
    """Writes a question by the habits of one writer.

    Args:
        text: Question.
        careless: Chance of each of the careless writer's habits, in [0, 1]; the other habits have one minus it. One half
            is a writer of whom nothing can be told.
        rng: Random generator.
    """
    drawn = rng.random(len(HABITS))
    for (name, habit), number in zip(HABITS.items(), drawn, strict=True):
        if number < (careless if name in CARELESS else 1 - careless):
            text = habit(text)
    return text


def asked(prompt: Prompt, change: Habit) -> Prompt:
    """Returns a prompt with its last message of the user changed."""
    places = [i for i, message in enumerate(prompt.messages) if message["role"] == "user"]
    if not places:
        return prompt
    message = prompt.messages[places[-1]]
    changed = {**message, "content": change(message["content"])}
    return replace(prompt, messages=(*prompt.messages[: places[-1]], changed, *prompt.messages[places[-1] + 1 :]))


class WrittenPrompts(PromptSource):
    """Prompts of another source, each written by the habits of some writer. Answers and uids stay as they are.

    For a policy's cold start and its evaluation beside the worlds, whose prompts are written so too. A grader must not
    compare a prompt's text: write AnswerReward or MathReward. Habits and chances are ours.

    Args:
        source: Path, name on the hub, or prompt source of the questions.
        careless: Chance of each of a careless writer's habits; the other habits have one minus it.
        seed: Seed of the habits.
    """

    def __init__(self, source: str | PromptSource, careless: Share = 0.5, seed: Seed = 0) -> None:
        self.source = source
        self.careless = careless
        self.seed = seed
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the source and writes its prompts, in its order."""
        rng = np.random.default_rng(self.seed)
        prompts = open_prompts(self.source).load()
        return [asked(prompt, lambda text: written(text, self.careless, rng)) for prompt in prompts]
