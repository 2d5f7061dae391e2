"""Dynamic sampling: replaces groups without variance by groups of the plan's next prompts (DAPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.rounds.rounds import Filled, Rounds, StepSource, refilled


@dataclass(frozen=True)
class DynamicSampling(Rounds):
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

    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Samples the batch, then replacements until every group varies, or rounds or prompts are used up."""
        first = source.sample(batch, 0, source.group_size)
        assert first is not None  # there is a batch
        parts = refilled(first, source, self.max_rounds)
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
