"""MostLearnable: samples groups of more prompts than it trains on, and trains on those with the highest p (1 - p)."""

from __future__ import annotations

import itertools

from saerl_lightning.ranges import CountFrom2, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.rounds.rounds import Filled, Rounds, StepSource, untrained


class MostLearnable(Rounds):
    """Samples whole groups of several times as many prompts as a step trains on, and trains on the most learnable.

    Learnability is p (1 - p) of the measured pass rate p; among equal ones the plan's earlier prompt wins. (Source: LILO,
    openreview 8HYeWMf0W3, by secondary sources, which do not tell how many prompts it samples: the factor is ours.)

    Args:
        factor: Number of prompts sampled for each that is trained on.

    Raises:
        InputError: if the factor is below 2.
    """

    def __init__(self, factor: CountFrom2 = 4) -> None:
        self.factor = factor
        require_in_range(self)

    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Samples the batch and the plan's next prompts, and selects among those of all processes."""
        first = source.sample(batch, 0, source.group_size)
        assert first is not None  # there is a batch
        more = source.sample(
            source.next_prompts(source.gather((self.factor - 1) * len(batch.prompts))), 1, source.group_size
        )
        generated = first if more is None else GradedGroups.join([first, more])
        ranked = sorted(itertools.chain(*source.gather(learnability(generated))))
        best = set(ranked[: sum(source.gather(len(batch.prompts)))])
        kept = [group for group, key in enumerate(learnability(generated)) if key in best]
        return generated, generated.of_groups(kept) if kept else untrained(first.of_groups([0]), source.group_size)


def learnability(groups: GradedGroups) -> list[tuple[float, int, int]]:
    """Sort keys of groups, the most learnable first: - p (1 - p) of the measured pass rate, round, and place in it.

    Args:
        groups: Graded groups; those without a graded answer in the loss come last.
    """
    rate = groups.answered.nanmean(1).double()
    keys = (rate * (rate - 1)).nan_to_num(0.0).tolist()
    return [*zip(keys, groups.rounds, groups.batch.places, strict=True)]
