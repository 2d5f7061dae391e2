"""PlannedRun: everything a report needs to know about a plan that was made. It computes nothing about the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

SLOTS = ("filtering", "clustering", "curriculum", "mixing")  # the method's own, in the order they are applied


@dataclass(frozen=True)
class OperationReport:
    """What one operation says of itself after it was applied."""

    slot: str  # "filtering", "extra.0"
    name: str  # of the class
    metrics: Mapping[str, float]
    reason: str = ""  # what the ledger says of the prompts it drops; "" where it drops none
    idle: str = ""  # why it does nothing although it is on; "" where it does something


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A plan with what it was made from.

    Args:
        prompts: the pool, N prompts.
        plan: over the pool.
        digest: names what is served and in which order.
        operations: in the order they were applied.
        signal: class of the signal source; null where the slot is empty.
        features: (N, F) rows of the pool; null where no operation reads them.
        feature_names: F names, where the columns have some (words).
    """

    prompts: Sequence[Prompt]
    plan: SamplePlan
    digest: str
    operations: Sequence[OperationReport] = ()
    signal: str | None = None
    features: Features | None = None
    feature_names: Sequence[str] | None = None

    @cached_property
    def ledger(self) -> Ledger:
        """One row a prompt."""
        return Ledger.of(self.plan, self.prompts, self.digest)

    def operation(self, slot: str) -> OperationReport | None:
        """What fills a slot; None where it is off."""
        return next((each for each in self.operations if each.slot == slot), None)

    def off(self) -> list[str]:
        """Slots that are empty."""
        signals = [] if self.signal else ["signals"]
        return signals + [slot for slot in SLOTS if self.operation(slot) is None]

    def idle(self) -> list[OperationReport]:
        """Operations that are on and do nothing."""
        return [each for each in self.operations if each.idle]

    @property
    def rated(self) -> bool:
        """Whether anything rated difficulty."""
        return bool(np.isfinite(self.plan.difficulty).any())
