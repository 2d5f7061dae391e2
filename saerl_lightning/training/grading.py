"""Completions and their grades, the first graded while the last are still being written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.records import PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.reward.total import grade
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.phases import Phases

Grades = dict[str, Float[Tensor, "P G"]]  # by the reward's name


def sample_and_grade(
    engine: RolloutEngine,
    rewards: Sequence[Reward],
    batch: PromptBatch,
    sampling: Sampling,
    phases: Phases,
    overlap: bool = True,
) -> tuple[Rollouts, Grades]:
    """Completes a batch and grades it.

    Where the engine hands its completions out in parts, each part is graded in a second thread while the next is
    written; so a reward sees the prompts of one part at a time. Time spent waiting for grades counts as `score`.

    Args:
        engine: completes the prompts.
        rewards: grade the completions.
        batch: P prompts.
        sampling: how completions are drawn.
        phases: get the seconds of `generate` and `score`.
        overlap: whether grading may begin before all is written.
    """
    parts: list[Rollouts] = []
    pending: list[Future[Grades]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="grading") as grader:
        with phases("generate"):
            done = 0
            for part in engine.stream(batch.ids, sampling):
                prompts = batch.prompts[done : done + len(part.texts) // part.group_size]
                done += len(prompts)
                parts.append(part)
                if overlap and done < len(batch.prompts):
                    pending.append(grader.submit(grade, rewards, prompts, part))
        with phases("score"):
            early = [future.result() for future in pending]
            return Rollouts.join(parts), _joined(early, rewards, batch, parts)


def _joined(
    early: Sequence[Grades], rewards: Sequence[Reward], batch: PromptBatch, parts: Sequence[Rollouts]
) -> Grades:
    """The grades of all parts; those after the early ones are given here."""
    rest = Rollouts.join(parts[len(early) :])
    graded_prompts = len(batch.prompts) - len(rest.texts) // rest.group_size
    late = grade(rewards, batch.prompts[graded_prompts:], rest)
    return {name: torch.cat([*(grades[name] for grades in early), late[name]]) for name in late}
