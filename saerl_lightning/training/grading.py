"""Completions and their grades, the first graded while the last are still being written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.policy.weights import without_adapters
from saerl_lightning.records import Outcomes, PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward, grade
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.distributed import Phases, gather_objects
from saerl_lightning.training.rows import Cut, StepRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from saerl_lightning.training.rows import Cut, StepRows


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


@dataclass(frozen=True)
class GradedGroups:
    """P prompts with their groups of completions, graded."""

    batch: PromptBatch
    rollouts: Rollouts
    rewards: Grades
    total: Float[Tensor, "P G"]  # their weighted sum
    rounds: list[int]  # P, the round of dynamic sampling that each group was sampled in; 0 is the batch itself
    masks_truncated: bool = False  # whether completions that `max_tokens` cut off are left out of the loss
    advantages: Float[Tensor, "P G"] | None = None  # once all of the step is graded

    @classmethod
    def join(cls, parts: Sequence[GradedGroups]) -> GradedGroups:
        """Puts several under one another."""
        prompts = [prompt for part in parts for prompt in part.batch.prompts]
        ids, rows = [i for part in parts for i in part.batch.ids], [r for part in parts for r in part.batch.rows]
        return cls(
            PromptBatch(prompts, ids, rows),
            Rollouts.join([part.rollouts for part in parts]),
            {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            torch.cat([part.total for part in parts]),
            [number for part in parts for number in part.rounds],
            parts[0].masks_truncated,
        )

    def of_groups(self, groups: Sequence[int]) -> GradedGroups:
        """Some of the groups, given by their position, in that order."""
        batch, index = self.batch, torch.tensor(groups, dtype=torch.long)
        return GradedGroups(
            PromptBatch(
                [batch.prompts[g] for g in groups], [batch.ids[g] for g in groups], [batch.rows[g] for g in groups]
            ),
            self.rollouts.of_groups(groups),
            {name: values[index] for name, values in self.rewards.items()},
            self.total[index],
            [self.rounds[g] for g in groups],
            self.masks_truncated,
        )

    @property
    def in_loss(self) -> Bool[Tensor, "P G"]:
        """Which completions the loss sees: graded ones, and where `masks_truncated` those that ended by themselves."""
        graded = self.total.isfinite()
        return graded & ~self.rollouts.truncated.view_as(graded) if self.masks_truncated else graded

    @property
    def compared(self) -> Float[Tensor, "P G"]:
        """The totals that have a say in baselines: NaN for every completion that is not trained on."""
        return self.total.masked_fill(~self.in_loss, torch.nan)

    @property
    def varied(self) -> Bool[Tensor, " P"]:
        """Which groups have completions of different first reward, the one that says what is right.

        The others teach nothing, or nothing but a length or a format. Completions that the loss does not see have no say.
        """
        right = next(iter(self.rewards.values())).masked_fill(~self.in_loss, torch.nan)
        highest, lowest = right.nan_to_num(-torch.inf).amax(1), right.nan_to_num(torch.inf).amin(1)
        return highest - lowest > 1e-6  # none is seen: -inf

    @property
    def outcomes(self) -> Outcomes:
        """What was learned about the prompts; the first reward says what counts as right."""
        right = next(iter(self.rewards.values()))
        return Outcomes([prompt.uid for prompt in self.batch.prompts], self.total, right.nanmean(1))


@torch.no_grad()
def score_step(
    scorer: Scorer, model: PreTrainedModel, step: StepRows, cut: Cut
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Log-probabilities and entropies of the step's scored rows, 0 elsewhere."""
    micro_batches = step.micro_batches(cut)
    parts = [scorer(model, rows.tokens, rows.written, rows.prompts) for rows in map(step.of_rows, micro_batches)]
    logprobs, entropies = zip(*parts, strict=True)
    return step.joined(micro_batches, logprobs), step.joined(micro_batches, entropies)


def entropy_floor(entropy: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"], top: float, ranks: int) -> float:
    """The entropy above which the `top` share of all ranks' completion tokens lies; -inf where `top` is 1.

    Source: "Beyond the 80/20 rule", arXiv 2506.01939, which trains on the fifth of highest entropy.
    """
    if top >= 1:
        return -torch.inf
    everywhere = np.concatenate(gather_objects(entropy[mask].cpu().numpy(), ranks))
    return float(np.quantile(everywhere, 1 - top)) if len(everywhere) else -torch.inf


class Reference:
    """The policy as it was before training: a second copy of its weights, or with LoRA the same weights without adapters.

    It is loaded from where the policy came from, also after a resume, and is in no checkpoint.
    """

    def __init__(self, policy: Policy, model: PreTrainedModel) -> None:
        self._model = model if policy.lora else policy.load_model()
        self._model.to(model.device)  # pyright: ignore[reportArgumentType]  # transformers types `self` wrongly

    def logprobs(self, scorer: Scorer, step: StepRows, cut: Cut) -> Float[Tensor, "R T"]:
        """Log-probabilities of the step's completion tokens under the reference, 0 elsewhere."""
        with without_adapters(self._model):
            return score_step(scorer, self._model, step, cut)[0]
