"""MadePlan: a plan with everything that its page and its tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from saerl_lightning.data.planning import SLOTS
from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


@dataclass(frozen=True)
class OperationReport:
    """What one operation reports after it was applied."""

    slot: str  # "filtering", "extra.0"
    name: str  # name of the class
    metrics: Mapping[str, float]
    reason: str = ""  # reason in the ledger for prompts it drops; "" if it drops none
    idle: str = ""  # why it has no effect; "" if it has one
    doubt: str = ""  # why it may act at random; "" if it does not


@dataclass(frozen=True, eq=False)
class MadePlan:
    """A plan with the inputs it was made from.

    Args:
        prompts: Prompts of the pool (N).
        plan: Plan over the pool.
        digest: Digest of the served prompts and their order.
        operations: Reports of the operations, in the order of application.
        signal: Class name of the signal source; null for none.
        features: Feature rows of the pool, (N, F); null if no operation reads them.
        feature_names: Names of the F columns, such as words; null if they have none.
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
        """The ledger of the plan, one row per prompt."""
        return Ledger.of(self.plan, self.prompts, self.digest)

    def operation(self, slot: str) -> OperationReport | None:
        """Returns the report of the operation in a slot; None if the slot is off."""
        return next((each for each in self.operations if each.slot == slot), None)

    def off(self) -> list[str]:
        """Returns the slots that are empty."""
        signals = [] if self.signal else ["signals"]
        return signals + [slot for slot in SLOTS if self.operation(slot) is None]

    def idle(self) -> list[OperationReport]:
        """Returns the reports of operations that had no effect."""
        return [each for each in self.operations if each.idle]

    def doubtful(self) -> list[OperationReport]:
        """Returns the reports of operations that may act at random."""
        return [each for each in self.operations if each.doubt]

    @property
    def rated(self) -> bool:
        """Whether any prompt has a difficulty rating."""
        return bool(np.isfinite(self.plan.difficulty).any())
