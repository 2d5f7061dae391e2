"""Samples and grades completions, overlapped; holds the frozen reference policy, and scores a step by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saerl_lightning.errors import RunStopped
from saerl_lightning.objective.keeping.keep import KnownCompletions
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.reweighting.reweighting import Everywhere
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.policy.weights import is_sharded, without_adapters
from saerl_lightning.ranks.collectives import gather_objects, gather_rows
from saerl_lightning.records import Outcomes, PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward, grade, no_grades
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.rows import Cut, StepRows

if TYPE_CHECKING:
    import lightning
    from transformers import PreTrainedModel

    from saerl_lightning.training.metrics import Phases


Grades = dict[str, Float[Tensor, "P G"]]  # by the reward's name


def sample_and_grade(
    engine: RolloutEngine,
    rewards: Sequence[Reward],
    batch: PromptBatch,
    sampling: Sampling,
    phases: Phases,
    overlap: bool = True,
) -> tuple[Rollouts, Grades]:
    """Completes a batch of prompts and grades the completions.

    If the engine yields completions in parts, each part is graded in a second thread while the next part is generated.
    A reward therefore sees the prompts of one part at a time. The time spent waiting for grades counts as `score`.

    Args:
        engine: Engine that completes the prompts.
        rewards: Rewards that grade the completions.
        batch: Batch of P prompts.
        sampling: Sampling settings of the completions.
        phases: Timer that gets the seconds of `generate` and `score`.
        overlap: Whether grading may begin before all completions are generated.
    """
    parts: list[Rollouts] = []
    pending: list[Future[Grades]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="grading") as grader:
        try:
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
        except BaseException:  # also Ctrl-C: leaving the block waits for the second thread
            grader.shutdown(wait=False, cancel_futures=True)
            for reward in rewards:
                reward.interrupt()
            raise


def require_grades(rewards: Sequence[Reward], groups: GradedGroups, ranks: int) -> None:
    """Stops a run of whose first completions none could be graded on any rank; all must call this.

    Args:
        rewards: Rewards of the run.
        groups: Graded groups of this rank.
        ranks: Number of ranks.

    Raises:
        RunStopped: on every rank, saying why.
    """
    if not any(gather_objects(bool(groups.total.isfinite().any()), ranks)):
        raise RunStopped(no_grades(rewards, groups.rewards), everywhere=True)


def _joined(
    early: Sequence[Grades], rewards: Sequence[Reward], batch: PromptBatch, parts: Sequence[Rollouts]
) -> Grades:
    """Joins the grades of all parts; grades those that were not graded early."""
    rest = Rollouts.join(parts[len(early) :])
    graded_prompts = len(batch.prompts) - len(rest.texts) // rest.group_size
    late = grade(rewards, batch.prompts[graded_prompts:], rest)
    return {name: torch.cat([*(grades[name] for grades in early), late[name]]) for name in late}


@dataclass(frozen=True)
class GradedGroups:
    """P prompts with their graded groups of completions. A prompt that stands several times has one group in parts."""

    batch: PromptBatch
    rollouts: Rollouts
    rewards: Grades
    total: Float[Tensor, "P G"]  # their weighted sum
    rounds: list[int]  # P, the round of dynamic sampling that each prompt was taken in; 0 is the batch itself
    masks_truncated: bool = False  # whether completions that `max_tokens` cut off are left out of the loss
    advantages: Float[Tensor, "P G"] | None = None  # once all of the step is graded
    spent: dict[str, float] = field(default_factory=dict)  # seconds and counts of this rank's grading, by metric
    parts: dict[str, list[float]] = field(default_factory=dict)  # values of each part of each reward, by metric
    replayed: Bool[Tensor, " P"] | None = None  # groups that an earlier step sampled; None for none of them
    kept: Bool[Tensor, "P G"] | None = None  # completions that `model.keep` trains on; None for all

    @classmethod
    def join(cls, parts: Sequence[GradedGroups]) -> GradedGroups:
        """Joins several groups of prompts into one."""
        prompts = [prompt for part in parts for prompt in part.batch.prompts]
        ids, rows, places = (
            [value for part in parts for value in getattr(part.batch, name)] for name in ("ids", "rows", "places")
        )
        return cls(
            PromptBatch(prompts, ids, rows, places),
            Rollouts.join([part.rollouts for part in parts]),
            {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            torch.cat([part.total for part in parts]),
            [number for part in parts for number in part.rounds],
            parts[0].masks_truncated,
            spent=_summed([part.spent for part in parts], 0.0),
            parts=_summed([part.parts for part in parts], []),
        )

    def of_groups(self, groups: Sequence[int]) -> GradedGroups:
        """Selects groups by position, in the given order, without what their grading cost."""
        index = torch.tensor(groups, dtype=torch.long)
        return GradedGroups(
            self.batch.of_prompts(groups),
            self.rollouts.of_groups(groups),
            {name: values[index] for name, values in self.rewards.items()},
            self.total[index],
            [self.rounds[g] for g in groups],
            self.masks_truncated,
        )

    def in_groups_of(self, size: int) -> GradedGroups:
        """Returns the same completions in groups of another size: groups are split, or neighbours of a prompt joined."""
        old = self.rollouts.group_size
        firsts = [first // old for first in range(0, self.total.numel(), size)]
        return replace(
            self,
            batch=self.batch.of_prompts(firsts),
            rollouts=replace(self.rollouts, group_size=size),
            rewards={name: values.reshape(-1, size) for name, values in self.rewards.items()},
            total=self.total.reshape(-1, size),
            rounds=[self.rounds[first] for first in firsts],
        )

    @property
    def in_loss(self) -> Bool[Tensor, "P G"]:
        """Marks the completions in the loss: graded and kept ones and, with `masks_truncated`, only those that ended."""
        graded = self.total.isfinite() if self.kept is None else self.total.isfinite() & self.kept
        return graded & ~self.rollouts.truncated.view_as(graded) if self.masks_truncated else graded

    @property
    def compared(self) -> Float[Tensor, "P G"]:
        """Total rewards for baselines: NaN for every completion that is not trained on."""
        return self.total.masked_fill(~self.in_loss, torch.nan)

    @property
    def varied(self) -> Bool[Tensor, " P"]:
        """Marks groups whose completions differ in the first reward, which says which answers are right.

        Other groups teach at most a length or a format. Completions that are not in the loss are ignored.
        """
        return differ(self.answered)

    @property
    def answered(self) -> Float[Tensor, "P G"]:
        """First reward of the completions in the loss; NaN for the others."""
        return next(iter(self.rewards.values())).masked_fill(~self.in_loss, torch.nan)

    def answers(self, batches: int, advantages: Float[Tensor, "P G"] | None = None) -> KnownCompletions:
        """Returns what is read to decide which completions are kept.

        Args:
            batches: Number of batches that the run has trained on before.
            advantages: Advantages of the completions; null for 0.
        """
        right = self.answered
        lengths = self.rollouts.completion_lengths.view(right.shape).to(right)
        advantages = torch.zeros_like(right) if advantages is None else advantages
        return KnownCompletions(self.compared, right, lengths, advantages, batches)

    def keeping(self, kept: Bool[Tensor, "P G"]) -> GradedGroups:
        """Returns these groups with only the given ones of their completions in the loss."""
        return replace(self, kept=kept if self.kept is None else kept & self.kept)

    def labels(self, name: str | None) -> Float[Tensor, " P"]:
        """Returns a label of each prompt; NaN for those without it, and without a name."""
        return torch.tensor([prompt.labels.get(name or "", torch.nan) for prompt in self.batch.prompts])

    @property
    def outcomes(self) -> Outcomes:
        """Outcomes of the prompts for the data operations; the first reward says which answers are right."""
        grid, first = ByPrompt(self.batch.rows), next(iter(self.rewards.values()))
        right, lengths = grid.joined(first), self.rollouts.completion_lengths.view(first.shape).double()
        return Outcomes(
            uids=[self.batch.prompts[group].uid for group in grid.firsts],
            rewards=grid.joined(self.total),
            right=right.nansum(1),
            graded=(~right.isnan()).sum(1),
            varied=differ(grid.joined(self.answered)),
            tokens=grid.joined(lengths).nansum(1).long().cpu(),
        )


class ByPrompt:
    """A grid with a row a prompt, in which the groups of a prompt stand side by side.

    Args:
        rows: Pool row of each group's prompt.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        found: dict[int, list[int]] = {}
        for group, row in enumerate(rows):
            found.setdefault(row, []).append(group)
        self.firsts = [groups[0] for groups in found.values()]  # the first group of each prompt
        self._repeats = len(found) < len(rows)
        self._places = torch.empty(len(rows), 2, dtype=torch.long)  # prompt of each group, and place among its groups
        for prompt, groups in enumerate(found.values()):
            for place, group in enumerate(groups):
                self._places[group] = torch.tensor([prompt, place])

    def joined(self, values: Float[Tensor, "U g"]) -> Float[Tensor, "P G"]:
        """Puts the values of all groups into the grid; NaN where a prompt has fewer groups than others."""
        if not self._repeats:
            return values
        prompts, places = self._places.unbind(1)
        grid = values.new_full((len(self.firsts), int(places.max()) + 1, values.shape[1]), torch.nan)
        grid[prompts, places] = values
        return grid.flatten(1)

    def split(self, grid: Float[Tensor, "P G"], size: int) -> Float[Tensor, "U g"]:
        """Takes the values of each group out of the grid again, given the size of the groups."""
        if not self._repeats:
            return grid
        prompts, places = self._places.unbind(1)
        return grid.unflatten(1, (-1, size))[prompts, places]


def differ(values: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Marks rows that hold different values; NaN is none."""
    highest, lowest = values.nan_to_num(-torch.inf).amax(1), values.nan_to_num(torch.inf).amin(1)
    return highest - lowest > 1e-6  # without a value: -inf


def advantages_of(
    objective: Objective, sampled: GradedGroups, step: StepRows, everywhere: Everywhere
) -> Float[Tensor, "P G"]:
    """Computes this rank's advantages from the rewards of all ranks' trained rows, minus their penalty.

    Args:
        objective: Objective that compares the completions of each prompt.
        sampled: Graded groups of this rank.
        step: Rows of these groups, with the reference if there is one.
        everywhere: Function that joins the values of all ranks.
    """
    total = sampled.compared
    if step.reference is not None:
        penalty = objective.penalty(step.sampler_logprobs, step.reference, step.mask)
        total = total if penalty is None else total - penalty.view_as(total).cpu()
    joined, own = everywhere(total)
    rows, _ = everywhere(torch.tensor(sampled.batch.rows))
    grid = ByPrompt(rows.tolist())
    return grid.split(objective.advantages(grid.joined(joined)), total.shape[1])[own]


def _summed(each: Sequence[Mapping[str, Any]], start: Any) -> dict[str, Any]:
    names = dict.fromkeys(name for numbers in each for name in numbers)
    return {name: sum((numbers.get(name, start) for numbers in each), start) for name in names}


def everywhere(trainer: lightning.Trainer) -> Everywhere:
    """Returns the function that joins the rows of all ranks, and says where this rank's are."""
    return partial(gather_rows, ranks=trainer.world_size, rank=trainer.global_rank)


def equal_forwards(model: PreTrainedModel, own: int) -> int:
    """Number of forward passes that all ranks make: of a sharded model the most that any needs, else this rank's own."""
    return max(gather_objects(own, torch.distributed.get_world_size())) if is_sharded(model) else own


@torch.no_grad()
def score_step(
    scorer: Scorer, model: PreTrainedModel, step: StepRows, cut: Cut
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Computes log-probabilities and entropies of the step's scored rows; zero elsewhere."""
    micro_batches = step.micro_batches(cut)
    forwards = equal_forwards(model, len(micro_batches))
    parts = [
        scorer(model, rows.tokens, rows.completion, rows.prompts, rows.own)
        for rows in step.parts(micro_batches, forwards)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return step.joined(micro_batches, logprobs), step.joined(micro_batches, entropies)


def entropy_floor(entropy: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"], top: float, ranks: int) -> float:
    """Entropy above which the `top` share of all ranks' completion tokens lies; -inf if `top` is 1.

    Source: "Beyond the 80/20 rule", arXiv 2506.01939, which trains on the fifth of highest entropy.
    """
    if top >= 1:
        return -torch.inf
    everywhere = np.concatenate(gather_objects(entropy[mask].cpu().numpy(), ranks))
    return float(np.quantile(everywhere, 1 - top)) if len(everywhere) else -torch.inf


class Reference:
    """The policy before training: a second copy of its weights, or with LoRA the base weights without adapters.

    It is loaded from the policy's original path, also after a resume, and is not in checkpoints.

    Args:
        policy: Policy to load.
        model: Policy that is trained.
        load: Function that loads it, sharded if the policy is.
    """

    def __init__(self, policy: Policy, model: PreTrainedModel, load: Callable[[], PreTrainedModel]) -> None:
        self._model = model if policy.lora else load()
        if not policy.lora:
            self._model.to(model.device)  # pyright: ignore[reportArgumentType]  # transformers types `self` wrongly

    def logprobs(self, scorer: Scorer, step: StepRows, cut: Cut) -> Float[Tensor, "R T"]:
        """Log-probabilities of the step's completion tokens under the reference; zero elsewhere."""
        with without_adapters(self._model):
            return score_step(scorer, self._model, step, cut)[0]
