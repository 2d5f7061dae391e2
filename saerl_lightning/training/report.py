"""What a step tells the logs, under the names that users of other trainers know."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.records import Rollouts


class MetricSum:
    """Adds up the metrics of a step's micro-batches: sums, except minima and maxima where the name says so."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def note(self, values: Mapping[str, float]) -> None:
        """Takes in numbers of the step as a whole; those of the last update stay."""
        self.values |= {name: torch.tensor(value) for name, value in values.items()}

    def add(self, metrics: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Takes in one micro-batch's share; `scale` is one over the number of updates that are averaged."""
        for name, value in metrics.items():
            if name not in self.values:
                self.values[name] = value * (1.0 if name.endswith(("/min", "/max")) else scale)
            elif name.endswith("/min"):
                self.values[name] = torch.minimum(self.values[name], value)
            elif name.endswith("/max"):
                self.values[name] = torch.maximum(self.values[name], value)
            else:
                self.values[name] = self.values[name] + value * scale


def reward_metrics(rewards: Mapping[str, Float[Tensor, "P G"]], total: Float[Tensor, "P G"]) -> dict[str, float]:
    """Mean, standard deviation and failed share of each reward and of their weighted sum."""
    metrics: dict[str, float] = {"reward/mean": _mean(total), "reward/std": _std(total)}
    for name, values in rewards.items():
        metrics[f"reward/{name}/mean"] = _mean(values)
        metrics[f"reward/{name}/std"] = _std(values)
        metrics[f"reward/{name}/failed_frac"] = values.isnan().float().mean().item()
    return metrics


def group_metrics(total: Float[Tensor, "P G"], rollouts: Rollouts) -> dict[str, float]:
    """Share of groups without variance, and the sampled tokens paid for each group that has some.

    A group whose completions all earn the same teaches nothing; tokens a group that does is what data selection is for.
    """
    filled = torch.where(total.isnan(), _group_mean(total), total)
    effective = (filled.amax(1) - filled.amin(1) > 1e-6).sum().item()  # (P, G) -> groups with variance
    tokens = rollouts.mask.sum().item()
    return {
        "groups/zero_variance_frac": 1 - effective / total.shape[0],
        "groups/effective": effective,
        "groups/tokens_per_effective": tokens / effective if effective else float("nan"),
    }


def completion_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Lengths of all completions and of those that ended by themselves, and the truncated share."""
    lengths = rollouts.completion_lengths.float()
    ended = lengths[~rollouts.truncated]
    return {
        "completions/length_mean": lengths.mean().item(),
        "completions/length_max": lengths.max().item(),
        "completions/length_min": lengths.min().item(),
        "completions/terminated_length_mean": ended.mean().item() if len(ended) else float("nan"),
        "completions/truncated_frac": rollouts.truncated.float().mean().item(),
    }


def time_metrics(seconds: Mapping[str, float], rollouts: Rollouts, trained: int) -> dict[str, float]:
    """Seconds a phase, and tokens a second of sampling and of the training part, in which `trained` tokens took part."""
    metrics = {f"time/{phase}": value for phase, value in seconds.items()}
    sampled = float(rollouts.mask.sum())
    training = seconds.get("forward", 0.0) + seconds.get("backward", 0.0)
    metrics["throughput/sampled_tokens_per_s"] = sampled / max(seconds.get("generate", 0.0), 1e-9)
    metrics["throughput/trained_tokens_per_s"] = trained / max(training, 1e-9)
    return metrics


def _group_mean(values: Float[Tensor, "P G"]) -> Float[Tensor, "P 1"]:
    return values.nanmean(1, keepdim=True).nan_to_num(0.0)


def _mean(values: Tensor) -> float:
    return values.nanmean().item()


def _std(values: Tensor) -> float:
    valid = values[values.isfinite()]
    return valid.std().item() if len(valid) > 1 else 0.0
