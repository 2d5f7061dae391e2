"""Dynamic sampling: groups that teach nothing are replaced by groups of the plan's next prompts (DAPO).

It decides which groups a step trains on, and nothing else: how prompts are sampled and graded, and which come next, it
is told as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.grading import GradedGroups


@dataclass(frozen=True)
class DynamicSampling:
    """Replaces groups without variance in the first reward by groups of the plan's next prompts, round after round.

    The first reward says what is right: groups that are all right or all wrong go, however their lengths or forms differ. A
    round samples as many prompts as groups are missing. If some are still missing after the last round, or at the
    plan's end, groups without variance stay in the step: it always has its full size. (Source: DAPO, arXiv 2503.14476,
    section 3.2, which samples whole batches and drops what is too much.)

    Args:
        max_rounds: most rounds of refills a step.

    Raises:
        InputError: if `max_rounds` is below 1.
    """

    max_rounds: Count = 10

    def __post_init__(self) -> None:
        """Refuses a number that refills nothing."""
        require_in_range(self)

    def fill(
        self,
        first: GradedGroups,
        sample: Callable[[PromptBatch, int], GradedGroups],
        next_prompts: Callable[[Sequence[int]], PromptBatch | None],
        gather_counts: Callable[[int], list[int]],
    ) -> tuple[GradedGroups, GradedGroups]:
        """Samples refills until every group varies, rounds are used up, or the plan is.

        Ranks may need different numbers of rounds: they ask for prompts together until none asks any more.

        Args:
            first: the batch's graded groups.
            sample: samples and grades prompts, in a round counted from 1.
            next_prompts: takes the plan's next prompts, given how many each rank asks for.
            gather_counts: tells what each rank asks for, given this rank's number.

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
            if batch is not None:
                parts.append(sample(batch, number))
                missing -= int(parts[-1].varied.sum())
            if plan_ends:
                missing = 0  # this rank asks no more
        if len(parts) == 1:
            return first, first
        generated = GradedGroups.join(parts)
        kept = trained_groups(generated.varied.tolist(), len(first.total))
        replaces = any(generated.rounds[group] for group in kept)
        return generated, generated.of_groups(kept) if replaces else first


def trained_groups(varied: Sequence[bool], size: int) -> list[int]:
    """Positions of the groups to train on: those that vary, and of the others the first that are needed for the size.

    Args:
        varied: whether each generated group varies, in the order of the plan.
        size: groups of a step.

    Returns:
        Positions in the order of the plan.
    """
    by_use = sorted(range(len(varied)), key=lambda group: not varied[group])  # stable
    return sorted(by_use[:size])
