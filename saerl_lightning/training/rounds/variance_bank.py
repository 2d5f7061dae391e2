"""VarianceBank: prompts of much variance come again in the places of groups that have too little (VCRL)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from saerl_lightning.objective.keeping.variance_schedule import VarianceSchedule
from saerl_lightning.ranges import Count, ShareBelow1, require_in_range
from saerl_lightning.records import Outcomes, PromptBatch
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.rounds.rounds import Filled, Rounds, StepSource, untrained

SCHEDULE = VarianceSchedule()
Entry = list[Any]  # of a prompt in the bank: priority, number of times it came again, pool row


class VarianceBank(Rounds):
    """Leaves groups of too little variance out of a step, and samples prompts of a bank anew in their places.

    A prompt enters the bank with a group that is not dropped. Its priority is then the share of the largest variance that
    its group had, and with each further group momentum · priority + (1 - momentum) · share. The highest priorities come
    first, the earlier pool row among equal ones; prompts of the step itself do not come again. A step has fewer groups
    while the bank has too few prompts. Every sampled token is charged. (Source: VCRL, arXiv 2509.19803, by secondary
    sources: the drop, its schedule, a momentum of .9, two replays. Ours, because no source tells: prompts are replayed and
    not completions, so all groups are of the present policy; the formula of the priority; no bound on the size; a prompt
    leaves after its last replay, and may enter again.)

    Args:
        drop: Variance that a group must have, by the number of batches done.
        momentum: Weight of the earlier priority.
        replays: Number of times that a prompt comes again before it leaves the bank.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, drop: VarianceSchedule = SCHEDULE, momentum: ShareBelow1 = 0.9, replays: Count = 2) -> None:
        self.drop = drop
        self.momentum = momentum
        self.replays = replays
        self._batches = 0
        self._bank: dict[str, Entry] = {}  # by uid
        self._rows: dict[str, int] = {}  # pool rows of the step's prompts, by uid
        self._again: set[str] = set()  # uids of the step's prompts that came from the bank
        require_in_range(self)

    def check(self, group_size: int) -> None:
        """Refuses groups of one completion, which have no variance."""
        self.drop.check(group_size)

    def fill(self, batch: PromptBatch, source: StepSource) -> Filled:
        """Samples the batch, then prompts of the bank for the groups that are dropped."""
        first = source.sample(batch, 0, source.group_size)
        assert first is not None  # there is a batch
        stays = self.drop.keep(first.answers(self._batches)).any(1).tolist()
        uids = [prompt.uid for prompt in batch.prompts]
        self._rows = dict(itertools.chain(*source.gather([*zip(uids, batch.rows, strict=True)])))
        dropped = [place for place, stay in zip(batch.places, stays, strict=True) if not stay]
        came = self._dealt(sorted(itertools.chain(*source.gather(dropped))))
        own = [place for place in dropped if place in came]
        more = source.sample(source.again([came[p] for p in own], own) if own else None, 1, source.group_size)
        kept = [group for group, stay in enumerate(stays) if stay]
        if more is None:
            return first, first.of_groups(kept) if kept else untrained(first.of_groups([0]), source.group_size)
        generated = GradedGroups.join([first, more])
        return generated, generated.of_groups([*kept, *range(len(stays), len(generated.total))])

    def _dealt(self, places: list[int]) -> dict[int, int]:
        """Deals the bank's best prompts to the places of dropped groups; notes them, and returns their pool rows."""
        ranked = sorted(
            (-priority, row, uid) for uid, (priority, _, row) in self._bank.items() if uid not in self._rows
        )
        chosen = ranked[: len(places)]
        self._again = {uid for _, _, uid in chosen}
        return {place: row for place, (_, row, _) in zip(places, chosen, strict=False)}

    def observe(self, outcomes: Outcomes) -> None:
        """Adds and updates prompts; those that came again for the last time leave. Ungraded ones change nothing."""
        counts = zip(outcomes.uids, outcomes.right.tolist(), outcomes.graded.tolist(), strict=True)
        for uid, right, graded in counts:
            if graded:
                self._learn(uid, counted_share(right, graded))
        self._batches += 1

    def _learn(self, uid: str, share: float) -> None:
        if uid not in self._bank:
            if share >= self.drop.threshold(self._batches):
                self._bank[uid] = [share, 0, self._rows[uid]]
            return
        priority, times, row = self._bank[uid]
        times += uid in self._again
        self._bank[uid] = [self.momentum * priority + (1 - self.momentum) * share, times, row]
        if times >= self.replays:
            del self._bank[uid]

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of batches done, and the bank."""
        return {"batches": self._batches, "bank": {uid: [*entry] for uid, entry in self._bank.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores both."""
        self._batches = state.get("batches", 0)
        self._bank = {uid: [*entry] for uid, entry in state.get("bank", {}).items()}
        self._rows, self._again = {}, set()


def counted_share(right: float, graded: int) -> float:
    """Variance of a group as a share of the largest possible one: 4k(n - k)/n², or 4k(n - k)/(n² - 1) for an odd n.

    Args:
        right: Number of right answers k, taken as one from 0 to n.
        graded: Number of graded answers n; fewer than two have no variance.
    """
    right = min(max(right, 0.0), float(graded))
    return 4 * right * (graded - right) / (graded**2 - graded % 2) if graded > 1 else 0.0
