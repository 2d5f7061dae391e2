"""Metrics of a training step, under the names that other trainers use, and the seconds of its phases."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.reward.reward import Reward, abstained
from saerl_lightning.training.grading import ByPrompt, GradedGroups

SUMS = ("rollouts/generated", "rollouts/trained", "rollouts/scored_tokens")
ROUNDS = ("rollouts/refill_rounds",)  # a rank takes part in the first ones, until it has what it needs


class Phases:
    """Sums wall-clock seconds by phase until `drain`.

    `listener`, if set, is called with the name of each phase when it begins; the progress bar uses it.

    Args:
        own_work: Whether the CUDA kernels that run are those of the phases; a second thread must not wait for others'.
    """

    def __init__(self, own_work: bool = True) -> None:
        self.own_work = own_work
        self.listener: Callable[[str], None] | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures the seconds of the block as phase `name`."""
        if self.listener is not None:
            self.listener(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            # CUDA kernels run asynchronously; without waiting, their seconds would count for a later phase.
            if self.own_work and torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds[name] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Returns and resets the seconds as `drain`, by the names of the log."""
        return {f"time/{phase}": seconds for phase, seconds in self.drain().items()}

    def drain(self) -> dict[str, float]:
        """Returns the seconds of each phase since the last call and resets them."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class MetricSum:
    """Sums the metrics of an update's micro-batches; takes minima and maxima if the name says so."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Adds the metrics of one micro-batch."""
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach()
            if name not in self.values:
                self.values[name] = value
            elif name.endswith("/min"):
                self.values[name] = torch.minimum(self.values[name], value)
            elif name.endswith("/max"):
                self.values[name] = torch.maximum(self.values[name], value)
            else:
                self.values[name] = self.values[name] + value

    def numbers(self) -> dict[str, float]:
        """Metrics of the update; the minimum or maximum of no value is NaN."""
        found = {name: float(value) for name, value in self.values.items()}
        nothing = {"/min": math.inf, "/max": -math.inf}
        return {name: math.nan if value == nothing.get(name[-4:]) else value for name, value in found.items()}


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combines metrics over updates or ranks: means, or minima and maxima if the name says so.

    A rank's share of a mean is divided by the *mean* size over ranks, so that the mean of the shares is the mean over
    all ranks. A missing value counts as 0 in a mean and is ignored in an extreme, as is NaN, the extreme of no value.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _combined(name, [part[name] for part in parts if name in part], len(parts)) for name in names}


def over_ranks(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combines the metrics of all ranks in a step: means, extremes if the name says so, and sums of counts."""
    totals = {name: sum(part[name] for part in parts) for name in parts[0] if name in SUMS or "/count/" in name}
    rounds = {name: max(part[name] for part in parts) for name in ROUNDS if name in parts[0]}
    return averaged(parts) | totals | rounds


def _combined(name: str, values: Sequence[float], parts: int) -> float:
    if not name.endswith(("/min", "/max")):
        return sum(values) / parts
    extreme = min if name.endswith("/min") else max
    return extreme((value for value in values if not math.isnan(value)), default=math.nan)


@dataclass(frozen=True)
class Completions:
    """Logged data of a step's completions and prompts, small enough to gather from every rank, so that means are exact."""

    rewards: dict[str, Float[Tensor, "P G"]]  # by name
    total: Float[Tensor, "P G"]  # their weighted sum
    compared: Float[Tensor, "P G"]  # the same, NaN for completions that the loss does not see
    lengths: Int[Tensor, " R"]  # tokens that the policy wrote
    truncated: Bool[Tensor, " R"]
    versions: Int[Tensor, " R"]  # of the weights that wrote the row
    difficulty: Float[Tensor, " P"]  # the plan's rating of the prompt; NaN without one
    prompts: Int[Tensor, " P"]  # pool row of each group's prompt

    @classmethod
    def of(cls, sampled: GradedGroups, difficulty: Float[np.ndarray, " N"]) -> Completions:
        """Data of one rank's completions.

        Args:
            sampled: Graded completions of the rank.
            difficulty: The plan's ratings of all prompts of the pool.
        """
        rows = sampled.rollouts
        rated = torch.as_tensor(difficulty[sampled.batch.rows])
        written = rows.completion_lengths, rows.truncated, rows.weight_version
        groups = rated, torch.tensor(sampled.batch.rows)
        return cls(sampled.rewards, sampled.total, sampled.compared, *written, *groups)

    @classmethod
    def join(cls, parts: Sequence[Completions]) -> Completions:
        """Joins the data of all ranks."""
        return cls(
            {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("total", "compared", "lengths", "truncated", "versions", "difficulty", "prompts")
            ),
        )

    def metrics(self, began: int) -> dict[str, float]:
        """Metrics of rewards, groups, lengths and staleness; `began` is the step's first weight version."""
        tokens, grid = int(self.lengths.sum()), ByPrompt(self.prompts.tolist())
        right = grid.joined(next(iter(self.rewards.values())))
        return {
            **reward_metrics(self.rewards, self.total),
            **group_metrics(grid.joined(self.compared), tokens),
            **length_metrics(self.lengths, self.truncated),
            **plan_metrics(self.difficulty[grid.firsts], right),
            "rollouts/generated_tokens": float(tokens),
            "rollouts/staleness": began - self.versions.double().mean().item(),
            "rollouts/staleness/max": began - self.versions.min().item(),
        }


def step_metrics(
    numbers: Sequence[Mapping[str, float]],
    completions: Sequence[Completions],
    parts: Sequence[Mapping[str, Sequence[float]]],
    began: int,
) -> dict[str, float]:
    """Metrics of a step over all ranks.

    Args:
        numbers: Numbers of each rank, by metric.
        completions: Completions of each rank.
        parts: Values of each part of each reward, of each rank.
        began: Weight version that the step began with.
    """
    values = over_ranks(numbers) | Completions.join(completions).metrics(began) | means_over_ranks(parts)
    return values | throughput_metrics(values)


def reward_metrics(rewards: Mapping[str, Float[Tensor, "P G"]], total: Float[Tensor, "P G"]) -> dict[str, float]:
    """Mean, standard deviation and share of failures of each reward and of their weighted sum.

    Completions that a reward does not apply to are left out of its own mean and deviation.
    """
    metrics: dict[str, float] = {"reward/mean": _mean(total), "reward/std": _std(total)}
    for name, values in rewards.items():
        given = values.masked_fill(abstained(values), math.nan)
        metrics[f"reward/{name}/mean"] = _mean(given)
        metrics[f"reward/{name}/std"] = _std(given)
        metrics[f"reward/{name}/failed_frac"] = values.isnan().float().mean().item()
    return metrics


def reward_costs(rewards: Sequence[Reward]) -> dict[str, float]:
    """Seconds of each reward and what else it counted since the last step."""
    metrics: dict[str, float] = {}
    for reward in rewards:
        metrics[f"reward/{reward.name}/seconds"] = reward.drain_seconds()
        metrics |= {f"reward/{reward.name}/count/{what}": number for what, number in reward.drain_counts().items()}
    return metrics


def reward_parts(rewards: Sequence[Reward]) -> dict[str, list[float]]:
    """Values of each part of each reward since the last step, by the name of its metric; one a completion that has it."""
    return {
        f"reward/{reward.name}/parts/{part}": values
        for reward in rewards
        for part, values in reward.drain_parts().items()
    }


def means_over_ranks(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Means of values that the ranks have in unequal numbers, or that some lack."""
    names = dict.fromkeys(name for part in parts for name in part)
    joined = {name: [value for part in parts for value in part.get(name, ())] for name in names}
    return {name: sum(values) / len(values) for name, values in joined.items()}


def group_metrics(compared: Float[Tensor, "P G"], tokens: int) -> dict[str, float]:
    """Share of groups without variance, and sampled tokens for each group with variance.

    A group of equal rewards has no gradient. Data selection aims at fewer tokens for each group with variance.

    Args:
        compared: Rewards, NaN for completions that are not in the loss.
        tokens: Number of tokens of all completions.
    """
    filled = torch.where(compared.isnan(), _group_mean(compared), compared)
    effective = (filled.amax(1) - filled.amin(1) > 1e-6).sum().item()  # (P, G) -> groups with variance
    return {
        "groups/zero_variance_frac": 1 - effective / compared.shape[0],
        "groups/effective": effective,
        "groups/tokens_per_effective": tokens / effective if effective else float("nan"),
    }


def length_metrics(lengths: Int[Tensor, " R"], truncated: Bool[Tensor, " R"]) -> dict[str, float]:
    """Lengths of all completions and of those that ended by themselves, and the share of truncated ones."""
    lengths = lengths.float()
    ended = lengths[~truncated]
    return {
        "completions/length_mean": lengths.mean().item(),
        "completions/length_max": lengths.max().item(),
        "completions/length_min": lengths.min().item(),
        "completions/terminated_length_mean": ended.mean().item() if len(ended) else float("nan"),
        "completions/truncated_frac": truncated.float().mean().item(),
    }


def plan_metrics(difficulty: Float[Tensor, " P"], right: Float[Tensor, "P G"]) -> dict[str, float]:
    """Mean rating of the step's prompts, and their mean pass rate: what the plan expected beside what was measured.

    Args:
        difficulty: The plan's rating of each prompt, NaN for prompts without one.
        right: First reward of each completion, NaN if its grader failed.
    """
    rated = {} if difficulty.isnan().all() else {"plan/difficulty": _mean(difficulty)}
    return {**rated, "plan/pass_rate": _mean(right.nanmean(1))}


def refill_metrics(generated: GradedGroups, trained: GradedGroups) -> dict[str, float]:
    """Numbers of generated and trained completions and of a rank's rounds, and the share of its replaced groups."""
    used = trained.total.numel() if trained.kept is None else int(trained.kept.sum())
    return {
        "rollouts/generated": float(generated.total.numel()),
        "rollouts/trained": float(used),
        "rollouts/refill_rounds": float(max(generated.rounds)),
        "rollouts/replaced_frac": sum(number > 0 for number in trained.rounds) / len(trained.rounds),
    }


def throughput_metrics(step: Mapping[str, float]) -> dict[str, float]:
    """Tokens a second of sampling and of training over all ranks, from counts and mean seconds."""
    training = step.get("time/forward", 0.0) + step.get("time/backward", 0.0)
    return {
        "throughput/sampled_tokens_per_s": step["rollouts/generated_tokens"]
        / max(step.get("time/generate", 0.0), 1e-9),
        "throughput/trained_tokens_per_s": step["rollouts/scored_tokens"] / max(training, 1e-9),
    }


def _group_mean(values: Float[Tensor, "P G"]) -> Float[Tensor, "P 1"]:
    return values.nanmean(1, keepdim=True).nan_to_num(0.0)


def _mean(values: Tensor) -> float:
    return values.nanmean().item()


def _std(values: Tensor) -> float:
    valid = values[values.isfinite()]
    return valid.std().item() if len(valid) > 1 else 0.0
