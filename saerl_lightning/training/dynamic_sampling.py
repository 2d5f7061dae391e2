"""Dynamic sampling: replaces groups without variance by groups of the plan's next prompts (DAPO).

This module only decides which groups a step trains on. Sampling, grading and the next prompts are passed as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.grading import GradedGroups


@dataclass(frozen=True)
class DynamicSampling:
    """Replaces groups without variance in the first reward by groups of the plan's next prompts, in rounds.

    The first reward says which answers are right: groups that are all right or all wrong are replaced, even if lengths
    or formats differ. A round samples as many prompts as groups are missing. If groups are still missing after the last
    round or at the plan's end, groups without variance stay, so that the step always has its full size. (Source: DAPO,
    arXiv 2503.14476, section 3.2, which samples whole batches and drops the surplus.)

    Args:
        max_rounds: Largest number of rounds of replacement in a step.

    Raises:
        InputError: if `max_rounds` is below 1.
    """

    max_rounds: Count = 10

    def __post_init__(self) -> None:
        """Refuses a number of rounds below 1."""
        require_in_range(self)

    def fill(
        self,
        first: GradedGroups,
        sample: Callable[[PromptBatch | None, int], GradedGroups | None],
        next_prompts: Callable[[Sequence[int]], PromptBatch | None],
        gather_counts: Callable[[int], list[int]],
    ) -> tuple[GradedGroups, GradedGroups]:
        """Samples replacements until every group varies, or rounds or prompts are used up.

        Ranks may need different numbers of rounds, but they must request prompts together, until no rank needs more.

        Args:
            first: Graded groups of the batch.
            sample: Function that samples and grades prompts in a round, counted from 1; ranks without prompts call it too,
                so that all learn of a failure.
            next_prompts: Function that takes the plan's next prompts, given the number that each rank needs.
            gather_counts: Function that returns the numbers of all ranks, given this rank's number.

        Returns:
            All groups that were generated, in the order of the plan, and those to train on: as many as the batch has.
        """
        parts = [first]
        missing = int((~first.varied).sum())
        for number in range(1, self.max_rounds + 1):
            counts = gather_counts(missing)
            if not any(counts):
                break
            batch = next_prompts(counts)
            plan_ends = (0 if batch is None else len(batch.prompts)) < missing
            if (more := sample(batch, number)) is not None:
                parts.append(more)
                missing -= int(more.varied.sum())
            if plan_ends:
                missing = 0  # this rank asks no more
        if len(parts) == 1:
            return first, first
        generated = GradedGroups.join(parts)
        kept = trained_groups(generated.varied.tolist(), len(first.total))
        replaces = any(generated.rounds[group] for group in kept)
        return generated, generated.of_groups(kept) if replaces else first


def trained_groups(varied: Sequence[bool], size: int) -> list[int]:
    """Selects the groups to train on: those that vary, then as many of the others as the size needs.

    Args:
        varied: Whether each generated group varies, in the order of the plan.
        size: Number of groups in a step.

    Returns:
        Positions in the order of the plan.
    """
    by_use = sorted(range(len(varied)), key=lambda group: not varied[group])  # stable
    return sorted(by_use[:size])
