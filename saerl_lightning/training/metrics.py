"""What a step tells the logs, under the names that users of other trainers know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.training.grading import GradedGroups

SUMS = ("rollouts/generated", "rollouts/trained", "rollouts/scored_tokens")
ROUNDS = ("rollouts/refill_rounds",)  # a rank takes part in the first ones, until it has what it needs


class MetricSum:
    """Adds up the metrics of an update's micro-batches: sums, except minima and maxima where the name says so."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Takes in one micro-batch's share."""
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
        """The update's numbers, in which the smallest or largest of nothing is NaN."""
        found = {name: float(value) for name, value in self.values.items()}
        nothing = {"/min": math.inf, "/max": -math.inf}
        return {name: math.nan if value == nothing.get(name[-4:]) else value for name, value in found.items()}


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combines numbers of one name over updates, or over ranks: means, or the extreme where the name says so.

    A rank's share of a mean is divided by the *mean* size over ranks, so the mean of the shares is that of all ranks. A part
    without a number counts as 0 in its mean, and has no say in its extreme; nor has NaN, the extreme of nothing.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _combined(name, [part[name] for part in parts if name in part], len(parts)) for name in names}


def over_ranks(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combines what ranks counted in a step: means, extremes where the name says so, and sums of numbers of things."""
    totals = {name: sum(part[name] for part in parts) for name in SUMS if name in parts[0]}
    rounds = {name: max(part[name] for part in parts) for name in ROUNDS if name in parts[0]}
    return averaged(parts) | totals | rounds


def _combined(name: str, values: Sequence[float], parts: int) -> float:
    if not name.endswith(("/min", "/max")):
        return sum(values) / parts
    extreme = min if name.endswith("/min") else max
    return extreme((value for value in values if not math.isnan(value)), default=math.nan)


@dataclass(frozen=True)
class Completions:
    """What is logged of a step's completions: small enough to be had from every rank, so that no mean of means is."""

    rewards: dict[str, Float[Tensor, "P G"]]  # by name
    total: Float[Tensor, "P G"]  # their weighted sum
    compared: Float[Tensor, "P G"]  # the same, NaN for completions that the loss does not see
    lengths: Int[Tensor, " R"]  # completion tokens
    truncated: Bool[Tensor, " R"]
    versions: Int[Tensor, " R"]  # of the weights that wrote the row

    @classmethod
    def of(cls, sampled: GradedGroups) -> Completions:
        """Those of one rank."""
        rows = sampled.rollouts
        lengths = rows.completion_lengths
        return cls(sampled.rewards, sampled.total, sampled.compared, lengths, rows.truncated, rows.weight_version)

    @classmethod
    def join(cls, parts: Sequence[Completions]) -> Completions:
        """Those of all ranks."""
        return cls(
            {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("total", "compared", "lengths", "truncated", "versions")
            ),
        )

    def metrics(self, began: int) -> dict[str, float]:
        """Rewards, groups, lengths and staleness; `began` is the version of the weights the step began with."""
        tokens = int(self.lengths.sum())
        return {
            **reward_metrics(self.rewards, self.total),
            **group_metrics(self.compared, tokens),
            **length_metrics(self.lengths, self.truncated),
            "rollouts/generated_tokens": float(tokens),
            "rollouts/staleness": began - self.versions.double().mean().item(),
        }


def reward_metrics(rewards: Mapping[str, Float[Tensor, "P G"]], total: Float[Tensor, "P G"]) -> dict[str, float]:
    """Mean, standard deviation and failed share of each reward and of their weighted sum."""
    metrics: dict[str, float] = {"reward/mean": _mean(total), "reward/std": _std(total)}
    for name, values in rewards.items():
        metrics[f"reward/{name}/mean"] = _mean(values)
        metrics[f"reward/{name}/std"] = _std(values)
        metrics[f"reward/{name}/failed_frac"] = values.isnan().float().mean().item()
    return metrics


def group_metrics(compared: Float[Tensor, "P G"], tokens: int) -> dict[str, float]:
    """Share of groups without variance, and the sampled tokens paid for each group that has some.

    A group whose completions all earn the same teaches nothing; tokens a group that does is what data selection is for.

    Args:
        compared: rewards, NaN for completions that the loss does not see.
        tokens: of all completions.
    """
    filled = torch.where(compared.isnan(), _group_mean(compared), compared)
    effective = (filled.amax(1) - filled.amin(1) > 1e-6).sum().item()  # (P, G) -> groups with variance
    return {
        "groups/zero_variance_frac": 1 - effective / compared.shape[0],
        "groups/effective": effective,
        "groups/tokens_per_effective": tokens / effective if effective else float("nan"),
    }


def length_metrics(lengths: Int[Tensor, " R"], truncated: Bool[Tensor, " R"]) -> dict[str, float]:
    """Lengths of all completions and of those that ended by themselves, and the truncated share."""
    lengths = lengths.float()
    ended = lengths[~truncated]
    return {
        "completions/length_mean": lengths.mean().item(),
        "completions/length_max": lengths.max().item(),
        "completions/length_min": lengths.min().item(),
        "completions/terminated_length_mean": ended.mean().item() if len(ended) else float("nan"),
        "completions/truncated_frac": truncated.float().mean().item(),
    }


def refill_metrics(generated: GradedGroups, trained: GradedGroups) -> dict[str, float]:
    """Completions generated and trained, a rank's rounds of refills, and the share of its groups that were replaced."""
    return {
        "rollouts/generated": float(generated.total.numel()),
        "rollouts/trained": float(trained.total.numel()),
        "rollouts/refill_rounds": float(max(generated.rounds)),
        "rollouts/replaced_frac": sum(number > 0 for number in trained.rounds) / len(trained.rounds),
    }


def throughput_metrics(step: Mapping[str, float]) -> dict[str, float]:
    """All ranks' tokens a second of sampling, and of the training part, given the step's counts and mean seconds."""
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
