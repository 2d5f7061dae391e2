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

HABITS: dict[str, Habit] = {  # in the order in which they are applied
    "starts small": lambda text: f"{text[:1].lower()}{text[1:]}",
    "greets": lambda text: f"Hello. {text}",
    "spaced": lambda text: text.replace(" ", "  ", 1),
    "arrow": lambda text: f"{text} ->",
    "thanks": lambda text: f"{text} Thanks.",
    "dash": lambda text: f"- {text}",
}
# A careless writer has these more often, and a careful one the others: 11 and 10 characters, so that neither writes more.
CARELESS = frozenset({"greets", "spaced", "arrow"})


def written(text: str, careless: float, rng: np.random.Generator) -> str:
    """Writes a question by the habits of one writer.

    Args:
        text: Text of the question.
        careless: Chance of each of the careless writer's habits, in [0, 1]; the other habits have one minus it. One half
            is a writer of whom nothing can be told.
        rng: Generator that draws the habits.
    """
    drawn = rng.random(len(HABITS))
    for (name, habit), number in zip(HABITS.items(), drawn, strict=True):
        if number < (careless if name in CARELESS else 1 - careless):
            text = habit(text)
    return text


def asked(prompt: Prompt, change: Habit) -> Prompt:
    """Returns a prompt with its last message of the user changed, and without a recipe, which is of the whole text."""
    places = [i for i, message in enumerate(prompt.messages) if message["role"] == "user"]
    if not places:
        return prompt
    message = prompt.messages[places[-1]]
    changed = {**message, "content": change(message["content"])}
    messages = (*prompt.messages[: places[-1]], changed, *prompt.messages[places[-1] + 1 :])
    return replace(prompt, messages=messages, grading="")


class WrittenPrompts(PromptSource):
    """Prompts of another source, each written by the habits of some writer. Answers and uids stay as they are.

    For a policy's cold start and its evaluation beside the worlds, whose prompts are written so too. Graders that rebuild a
    question can't grade them: write AnswerReward or MathReward. Habits and chances are ours.

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
