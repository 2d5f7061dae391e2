"""Speed: screens each prompt with few completions, and samples the rest only where they differ."""

from __future__ import annotations

import math
from dataclasses import replace

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, CountFrom2, require_in_range
from saerl_lightning.records import PromptBatch
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.rounds.rounds import Filled, Rounds, StepSource, refilled, untrained


class Speed(Rounds):
    """Screens each prompt with few completions, and samples the others of its group only where these differ.

    Prompts whose screened completions are all right or all wrong are replaced by the plan's next ones, which are
    screened too, in rounds. They are not trained on, so a step has fewer groups if some are still missing after the last
    round or at the plan's end. (Source: SPEED-RL, arXiv 2506.09016, and its code: 4 and 20 completions. There, prompts
    are screened one step before they are trained on, so a group mixes completions of two policies; here both parts are
    of one policy. That screening stops once the step is full is ours.)

    Args:
        screen: Number of completions that each prompt is screened with.
        more: Number of further completions of a prompt whose screened ones differ; `sampling.group_size` is their sum.
        max_rounds: Largest number of rounds of replacement in a step; 0 trains on what is left of the batch.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, screen: CountFrom2 = 4, more: Count = 20, max_rounds: CountFrom0 = 10) -> None:
        self.screen = screen
        self.more = more
        self.max_rounds = max_rounds
        require_in_range(self)

    def check(self, group_size: int) -> None:
        """Refuses a group size that is not the sum of both numbers."""
        if self.screen + self.more != group_size:
            raise InputError(
                f"Speed screens with {self.screen} completions and samples {self.more} more, and sampling.group_size is "
                f"{group_size}; write --model.sampling.group_size {self.screen + self.more}, or other numbers"
            )

    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Screens prompts until enough differ, then samples the others of their groups."""
        first = source.sample(batch, 0, self.screen)
        assert first is not None  # there is a batch
        parts = refilled(first, source, self.max_rounds)
        screened, unit = GradedGroups.join(parts), math.gcd(self.screen, self.more)
        wanted = screened.varied.nonzero().flatten().tolist()
        further = source.sample(
            self._continued(screened, wanted, sum(source.gather(len(batch.prompts)))), self.max_rounds + 1, self.more
        )
        generated, size = screened.in_groups_of(unit), self.screen + self.more
        if further is None:
            return generated, untrained(screened.of_groups([0]), size)
        further = replace(further, rounds=[screened.rounds[group] for group in wanted])
        whole = GradedGroups.join([screened.of_groups(wanted).in_groups_of(unit), further.in_groups_of(unit)])
        order = alternating(len(wanted), self.screen // unit, self.more // unit)
        trained = whole.of_groups(order).in_groups_of(size)
        return GradedGroups.join([generated, further.in_groups_of(unit)]), trained

    def _continued(self, screened: GradedGroups, wanted: list[int], batch_size: int) -> PromptBatch | None:
        """Returns the prompts to go on with, at places that no two of any round or process share."""
        places = [screened.batch.places[group] + batch_size * screened.rounds[group] for group in wanted]
        return screened.batch.of_prompts(wanted, places) if wanted else None


def alternating(count: int, first: int, second: int) -> list[int]:
    """Positions that put `first` pieces of each of a number of things, then `second` pieces of it, side by side.

    Args:
        count: Number of things, whose first pieces all stand before all second pieces.
        first: Number of first pieces of each.
        second: Number of second pieces of each.
    """
    behind = count * first
    return [
        place
        for thing in range(count)
        for place in (
            *range(thing * first, (thing + 1) * first),
            *range(behind + thing * second, behind + (thing + 1) * second),
        )
    ]
