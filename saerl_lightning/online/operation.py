"""Learner: what all shipped online operations share: they learn from graded groups, and arrange what is left.

N prompts in the pool, P prompts of a step, n prompts left in an epoch.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from saerl_lightning.data.callback import Online
from saerl_lightning.errors import RunStopped
from saerl_lightning.online.history import Groups, Prediction, ServedHistory
from saerl_lightning.online.rules.rule import Arrangement
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Outcomes, Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

NONE = np.zeros(0, dtype=np.int64)


class Learner(Online):
    """Learns from the groups of each step, and arranges what is left of the epoch before the next one.

    A subclass implements `begin`, `learn` and `arrange`, and extends both state methods. Groups without a graded answer
    teach nothing. What waits is counted on the first process, which decides. Random draws depend on the seed, the class,
    the number of steps, and the number of prompts served, so that a resumed run draws the same.

    Args:
        repeats: Whether a prompt may be served again before the epoch ends; its whole pool can then be chosen from.
        seed: Seed of random draws.
    """

    def __init__(self, repeats: bool = False, seed: int = 0) -> None:
        self._repeats = repeats
        self.seed = seed
        self.steps = 0  # number of steps learned from
        self.history = ServedHistory(0)
        # Whether all that is left is put in order, as where a mix deals the places; otherwise a batch is.
        self.orders_all = False
        self._row: dict[str, int] = {}
        self._waiting = NONE  # pool rows that wait while the next batch is served
        self._why = ""  # why they wait

    @property
    def repeats(self) -> bool:
        """Whether a prompt may be served again before the epoch ends."""
        return self._repeats

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Begins with what is known before training, and returns the plan as it is."""
        self._row = {prompt.uid: row for row, prompt in enumerate(prompts)}
        self.steps, self.history, self._waiting, self._report = 0, ServedHistory(len(prompts)), NONE, {}
        self.begin(plan, prompts, features)
        return plan

    def observe(self, outcomes: Outcomes) -> None:
        """Learns from the graded groups of a step.

        Raises:
            RunStopped: if the first reward is outside 0 to 1, so that it is no share of right answers.
        """
        right, graded = outcomes.right.double().numpy(), outcomes.graded.double().numpy()
        outside = (right < 0) | (right > graded)
        if outside.any():
            group = int(outside.argmax())
            raise RunStopped(
                f"data.online ({type(self).__name__}) reads the first reward as a pass rate, and prompt "
                f"'{outcomes.uids[group]}' got {right[group] / graded[group]:.4g} on average; put a reward from 0 to 1 first",
                everywhere=True,
            )
        known, rows = graded > 0, np.array([self._row[uid] for uid in outcomes.uids])
        self.history.serve(rows)
        if known.any():
            tokens, varied = outcomes.tokens.double().numpy(), outcomes.varied.numpy()
            groups = Groups(*(each[known] for each in (rows, right, graded, tokens, varied)))
            self._report = self.history.add(groups, self.predict(groups.rows))
            self.learn(groups)
        waited = np.setdiff1d(self._waiting, rows)  # some may have been served, as nothing else was left
        self.history.wait(waited, self._why)
        self._report = {**self._report, "waiting": float(len(waited))}
        self.steps += 1

    def revise(self, plan: SamplePlan, served: int) -> SamplePlan:
        """Arranges what is left of the epoch by `arrange`.

        Raises:
            RunStopped: if so many prompts are excluded that an epoch would have no batch.
        """
        rest = plan.rows[served:]
        random = np.random.default_rng([self.seed, zlib.crc32(type(self).__name__.encode()), self.steps, served])
        made = self.arrange(plan, rest, random)
        order = rest[made.order]
        self._waiting, self._why = NONE if made.waits is None else rest[made.waits], made.reason
        if made.excluded is None or not made.excluded.any():
            return plan.go_on(served, order)
        if not served:
            self._require_a_batch(int((~made.excluded).sum()), plan, made.reason)
        gone = dict.fromkeys(rest[made.excluded].tolist(), made.reason)
        return plan.go_on(served, order[~made.excluded[made.order]], gone)

    def _require_a_batch(self, left: int, plan: SamplePlan, reason: str) -> None:
        if left < plan.batch_size:
            raise RunStopped(
                f"data.online ({type(self).__name__}) excludes {len(plan.rows) - left} of {len(plan.rows)} prompts "
                f"({reason}), which leaves no batch of {plan.batch_size} for the next epoch; the run is done with this pool, "
                "or excludes too much"
            )

    def count(self, plan: SamplePlan, rest: Int[np.ndarray, " n"]) -> int:
        """Returns how many of the prompts that are left are put in order; the others follow in the order of the plan."""
        return len(rest) if self.orders_all else plan.batch_size

    def waits_as(self, other: Learner) -> None:
        """Lets the same prompts wait, for the same reason, as another operation that arranged this one's rest."""
        self._waiting, self._why = other._waiting, other._why

    @abstractmethod
    def begin(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets everything to what is known before training.

        Args:
            plan: Plan as it is before training.
            prompts: Prompts of the pool (N), followed by the reference prompts.
            features: Feature rows of the prompts; None without a signal source.
        """

    @property
    def predicts(self) -> bool:
        """Whether `predict` predicts; false by default."""
        return False

    def predict(self, rows: Int[np.ndarray, " n"]) -> Prediction | None:
        """Predicts prompts: mean and standard deviation of the pass rate, chance that a group varies. By default nothing.

        Args:
            rows: Pool rows of the prompts.
        """
        return None

    @abstractmethod
    def learn(self, groups: Groups) -> None:
        """Learns from the graded groups of one step."""

    @abstractmethod
    def arrange(self, plan: SamplePlan, rest: Int[np.ndarray, " n"], random: np.random.Generator) -> Arrangement:
        """Arranges the prompts that are left.

        Args:
            plan: Plan of the epoch.
            rest: Pool rows that are left, in the order of the plan.
            random: Generator for draws.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps, what was served so far, and what waits now."""
        waiting = torch.from_numpy(self._waiting.copy())
        return {"steps": self.steps, "history": self.history.state_dict(), "waiting": waiting, "why": self._why}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.steps, self._waiting, self._why = state["steps"], state["waiting"].numpy().copy(), state["why"]
        self.history.load_state_dict(state["history"])
