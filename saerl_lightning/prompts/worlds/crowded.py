"""CrowdedPrompts: a pool in which one topic crowds out the others, mostly by near-duplicates of few questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.prompts.worlds.writers import asked, written
from saerl_lightning.ranges import Count, CountFrom2, PositiveShare, Seed, require_in_range
from saerl_lightning.records import Prompt


class CrowdedPrompts(PromptSource):
    """Prompts of another source, of which one topic's fill most of the pool. Label `group`: number of the question.

    The crowded topic is served in near-duplicates: each of its questions is written by the habits of several writers. The
    other topics' questions are written once. Everything here is ours: a world in which clusters that are served evenly can
    earn something where all topics count alike in the evaluation.

    Args:
        source: Path, name on the hub, or prompt source of questions with topics.
        size: Number of prompts.
        topic: Topic that crowds out the others.
        share: Share of the pool that the topic fills, in (0, 1].
        copies: Number of near-duplicates of each of its questions.
        seed: Seed of all that is drawn.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self,
        source: str | PromptSource,
        size: CountFrom2,
        topic: str,
        share: PositiveShare = 0.85,
        copies: Count = 4,
        seed: Seed = 0,
    ) -> None:
        self.source = source
        self.size = size
        self.topic = topic
        self.share = share
        self.copies = copies
        self.seed = seed
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the source, and returns the crowd and the others in a random order.

        Raises:
            InputError: if the source has too few questions of the topic, or of the others.
        """
        rng = np.random.default_rng(self.seed)
        whole = open_prompts(self.source).load()
        shuffled = [whole[row] for row in rng.permutation(len(whole)).tolist()]
        crowd = round(self.share * self.size)
        questions = self._first(shuffled, True, -(-crowd // self.copies))
        copied = [self._copy(questions[i // self.copies], i // self.copies, i, rng) for i in range(crowd)]
        others = self._first(shuffled, False, self.size - crowd)
        single = [self._copy(prompt, len(questions) + i, crowd + i, rng) for i, prompt in enumerate(others)]
        pool = [*copied, *single]
        return [pool[place] for place in rng.permutation(len(pool)).tolist()]

    def _first(self, prompts: list[Prompt], crowded: bool, count: int) -> list[Prompt]:
        """Returns the first prompts of the crowded topic, or of the others.

        Raises:
            InputError: if there are too few.
        """
        found = [prompt for prompt in prompts if (prompt.topic == self.topic) == crowded]
        if len(found) < count:
            topics = sorted({str(prompt.topic) for prompt in prompts})
            raise InputError(
                f"CrowdedPrompts needs {count} questions {'of' if crowded else 'outside'} the topic '{self.topic}', and its "
                f"source has {len(found)} (topics: {', '.join(topics[:8])}); write a smaller size, or a larger source"
            )
        return found[:count]

    def _copy(self, prompt: Prompt, group: int, number: int, rng: np.random.Generator) -> Prompt:
        """Writes a prompt by a writer's habits, under a uid of its own."""
        styled = asked(prompt, lambda text: written(text, 0.5, rng))
        labels = {**prompt.labels, "group": float(group)}
        return replace(styled, uid=f"{prompt.uid}@{number}", labels=labels)
