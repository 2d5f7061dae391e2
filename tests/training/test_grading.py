"""Grades come while completions are still being written, and are those of grading at the end."""

from __future__ import annotations

import threading

import pytest
import torch

from saerl_lightning.records import Prompt, PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.scripted import ScriptedEngine
from saerl_lightning.training.grading import sample_and_grade
from saerl_lightning.training.metrics import Phases

BATCH = PromptBatch([Prompt(str(p), (), str(p)) for p in range(3)], [[1, 2], [3], [4, 5, 6]], [0, 1, 2])


class Number(Reward):
    """The completion's number, as its text says it; tells when it was asked."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.prompts: list[list[str]] = []

    def __call__(self, prompts, rollouts):
        self.asked.set()
        self.prompts.append([prompt.uid for prompt in prompts])
        return torch.tensor([float(text) for text in rollouts.texts]).view(len(prompts), rollouts.group_size)


class InParts(ScriptedEngine):
    """Hands out one prompt a time, and does not write on before the first was graded."""

    def __init__(self, until: threading.Event) -> None:
        self.until = until

    def stream(self, prompt_ids, sampling):
        for p, ids in enumerate(prompt_ids):
            if p == 1:
                assert self.until.wait(10), "nobody graded the first part"
            texts = [str(10 * p + g) for g in range(2)]
            yield Rollouts.pack([ids], [[7], [8, 9]], [[-1.0], [-1.0, -2.0]], [False, True], texts, 2, 0)


def test_the_first_part_is_graded_while_the_second_is_written():
    reward = Number()
    rollouts, grades = sample_and_grade(InParts(reward.asked), [reward], BATCH, Sampling(), Phases())
    assert reward.prompts == [["0"], ["1"], ["2"]]
    assert grades["number"].tolist() == [[0, 1], [10, 11], [20, 21]]
    assert rollouts.texts == ["0", "1", "10", "11", "20", "21"]
    assert rollouts.tokens.shape == (6, 5)


def test_without_overlap_all_is_graded_at_once():
    reward = Number()
    reward.asked.set()
    _, grades = sample_and_grade(InParts(reward.asked), [reward], BATCH, Sampling(), Phases(), overlap=False)
    assert reward.prompts == [["0", "1", "2"]]
    assert grades["number"].tolist() == [[0, 1], [10, 11], [20, 21]]


def test_a_grader_that_raises_early_is_heard():
    class Broken(Number):
        def __call__(self, prompts, rollouts):
            self.asked.set()
            raise RuntimeError("no gold answer")

    reward = Broken()
    with pytest.raises(RuntimeError, match="no gold answer"):
        sample_and_grade(InParts(reward.asked), [reward], BATCH, Sampling(), Phases())
