"""Accuracy over a set of questions with several samples each, accumulated over batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from saerl_lightning.evaluation.estimators import avg_at_k, maj_at_k, pass_at_k
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import last_answer

NO_TOPIC = -1


class SampledAccuracy(Metric):
    """Accumulates avg@k, pass@k, maj@k, the share of truncated samples, and accuracy by topic and level.

    A sample is correct if its score is 1 or more. Samples that the grader failed on are left out.

    Args:
        k: Number of samples per question.
        topics: Topics that are reported separately, the same list on every rank.
        extract: Function that returns the answer in a text, for maj@k; "" is not counted.
    """

    full_state_update = False
    scores: list[Tensor]
    majority: list[Tensor]
    truncated: list[Tensor]
    topic: list[Tensor]
    level: list[Tensor]

    def __init__(self, k: int, topics: Sequence[str] = (), extract: Callable[[str], str] = last_answer) -> None:
        super().__init__()
        self.k = k
        self.topics = list(topics)
        self.extract = extract
        for state in ("scores", "majority", "truncated", "topic", "level"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        # A plain list of this rank's questions, because metric states can't hold texts.
        self.uids: list[str] = []

    def reset(self) -> None:
        """Removes all questions."""
        super().reset()
        self.uids = []

    def update(self, prompts: Sequence[Prompt], rollouts: Rollouts, scores: Float[Tensor, "P k"]) -> None:
        """Adds a batch of questions.

        Args:
            prompts: Questions of the batch (P).
            rollouts: Samples of the questions, P * k rows.
            scores: Score of each sample, (P, k); NaN if the grader failed.
        """
        scores = scores.detach().float()
        self.uids += [prompt.uid for prompt in prompts]
        votes = [self.extract(text) for text in rollouts.texts]
        groups = [votes[start : start + self.k] for start in range(0, len(votes), self.k)]
        codes = {topic: code for code, topic in enumerate(self.topics)}
        # All states are flat, because the state of a rank without questions is flat too.
        self.scores.append(scores.flatten())  # (P * k,)
        self.majority.append(maj_at_k(groups, scores))  # (P,)
        self.truncated.append(rollouts.truncated.float().view(len(prompts), self.k).mean(1).to(scores))  # (P,)
        self.topic.append(scores.new_tensor([codes.get(prompt.topic or "", NO_TOPIC) for prompt in prompts]))  # (P,)
        self.level.append(scores.new_tensor([prompt.labels.get("level", torch.nan) for prompt in prompts]))  # (P,)

    def per_question(self) -> Float[Tensor, " Q"]:
        """Computes avg@k of each question, for intervals over questions."""
        return avg_at_k(self._scores())

    def topic_of_question(self) -> list[str]:
        """Returns the topic of each question, "" for none."""
        codes = dim_zero_cat(self.topic).long().tolist()
        return ["" if code == NO_TOPIC else self.topics[code] for code in codes]

    def level_of_question(self) -> list[float]:
        """Returns the level of each question, NaN for none."""
        return dim_zero_cat(self.level).tolist()

    def compute(self) -> dict[str, Tensor]:
        """Computes all estimates by name: avg@8, pass@1 … pass@8, maj@8, truncated_frac, acc/topic/…, acc/level/…."""
        scores = self._scores()
        correct = torch.where(scores.isnan(), torch.nan, (scores >= 1).float())  # (Q, k)
        average = avg_at_k(scores)  # (Q,)
        return {
            f"avg@{self.k}": average.nanmean(),
            **{f"pass@{n}": pass_at_k(correct, n).nanmean() for n in _powers_of_two(self.k)},
            f"maj@{self.k}": dim_zero_cat(self.majority).nanmean(),
            "truncated_frac": dim_zero_cat(self.truncated).mean(),
            **self._by_topic(average),
            **self._by_level(average),
        }

    def _scores(self) -> Float[Tensor, "Q k"]:
        return dim_zero_cat(self.scores).view(-1, self.k)

    def _by_topic(self, average: Float[Tensor, " Q"]) -> dict[str, Tensor]:
        topic = dim_zero_cat(self.topic)  # (Q,)
        present = {name: topic == code for code, name in enumerate(self.topics)}
        return {f"acc/topic/{name}": average[rows].nanmean() for name, rows in present.items() if rows.any()}

    def _by_level(self, average: Float[Tensor, " Q"]) -> dict[str, Tensor]:
        level = dim_zero_cat(self.level)  # (Q,)
        values = level[~level.isnan()].unique().tolist()
        return {f"acc/level/{value:g}": average[level == value].nanmean() for value in values}


def macro_average(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Averages each estimate over named sets with equal weights. Only estimates that all sets have are included.

    avg@k and maj@k are averaged over different k. Breakdowns (`acc/…`) belong to one set and are left out.

    Args:
        sets: Estimates of each set, by set name and estimate name.
    """
    tables = [{_family(name): float(value) for name, value in values.items()} for values in sets.values()]
    shared = [name for name in (tables[0] if tables else {}) if all(name in table for table in tables)]
    return {name: sum(table[name] for table in tables) / len(tables) for name in shared if not name.startswith("acc/")}


def measures(k: int) -> list[str]:
    """Lists the names of the estimates from k samples per question, without those by topic and level."""
    return [f"avg@{k}", *(f"pass@{n}" for n in _powers_of_two(k)), f"maj@{k}", "truncated_frac"]


def _family(name: str) -> str:
    head, at, _ = name.partition("@")
    return f"{head}@k" if at and head in ("avg", "maj") else name


def _powers_of_two(limit: int) -> list[int]:
    return [2**power for power in range(limit.bit_length())]
