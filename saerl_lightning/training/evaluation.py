"""Evaluation: grades the answers to named sets, and gives every set's accuracy over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from saerl_lightning.evaluation.metrics import SampledAccuracy, macro_average
from saerl_lightning.ranks.collectives import fail_together
from saerl_lightning.records import PromptBatch, Rollouts
from saerl_lightning.reward.reward import Reward, grade_by


class SetGrades:
    """Accuracy of each named set, collected batch by batch on every process.

    The processes may have unequal numbers of batches. So a failure is kept, this process grades no more, and all of
    them learn of it at the end.

    Args:
        samples: Number of completions per question of each set, by name.
        topics: Topics of the questions, of which each has an accuracy of its own.
        reward: Reward that grades the completions.
        device: Device that the numbers are kept on.
    """

    def __init__(self, samples: Mapping[str, int], topics: Sequence[str], reward: Reward, device: torch.device) -> None:
        self.reward = reward
        self.failure: Exception | None = None
        accuracy = {n: SampledAccuracy(size, topics, extract=reward.vote) for n, size in samples.items()}
        self.accuracy = {name: metric.to(device) for name, metric in accuracy.items()}

    def grade(self, batch: PromptBatch, rollouts: Rollouts, index: int) -> None:
        """Adds the grades of one batch of the set at position `index`."""
        scores = grade_by(self.reward, batch.prompts, rollouts)  # (P, k)
        list(self.accuracy.values())[index].update(batch.prompts, rollouts, scores)

    def metrics(self, stage: str) -> dict[str, float]:
        """Computes `<stage>/<set>/<metric>` and the macro average over the sets. All processes call it.

        Raises:
            RunStopped: if another process failed; the one that did raises its own error.
        """
        fail_together(self.failure)
        computed = {name: accuracy.compute() for name, accuracy in self.accuracy.items()}
        results = {name: {key: float(value) for key, value in values.items()} for name, values in computed.items()}
        named = {**results, "macro": macro_average(results)}
        return {f"{stage}/{name}/{key}": value for name, metrics in named.items() for key, value in metrics.items()}
