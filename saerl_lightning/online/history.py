"""ServedHistory: what was served and graded so far in a run, what had been predicted of it, how well, and what waits.

N prompts in the pool, P prompts of a step, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

BINS = 10  # of predicted chances, in the table of reliability
COUNTS = ("times_served", "groups", "right", "graded", "tokens", "last_step", "waits", "why")
PREDICTIONS = ("pass_rate_predicted", "pass_rate_sd", "chance_predicted")
OF_A_STEP = ("pass_rate_predicted", "pass_rate", "effective_predicted", "effective")

Prediction = tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"], Float[np.ndarray, " P"]]


@dataclass(frozen=True)
class Groups:
    """The groups of one step that have a graded answer, each of another prompt."""

    rows: Int[np.ndarray, " P"]  # pool rows of their prompts
    right: Float[np.ndarray, " P"]  # number of right answers; a fraction where the first reward gives one
    graded: Float[np.ndarray, " P"]  # number of graded answers, at least 1
    tokens: Float[np.ndarray, " P"]  # number of tokens that the policy wrote
    varied: Bool[np.ndarray, " P"]  # whether the answers differ


class ServedHistory:
    """Counts of every prompt, the predictions at its latest step, means of every step, and a table of reliability.

    Args:
        pool: Number of prompts in the pool (N).
    """

    def __init__(self, pool: int) -> None:
        self.columns = {name: np.zeros(pool) for name in COUNTS} | {name: np.full(pool, np.nan) for name in PREDICTIONS}
        self.columns["last_step"] -= 1  # never
        self.reasons = [""]  # why prompts waited; the column `why` is a position in it
        self.steps: list[tuple[float, ...]] = []  # (S, 4): the numbers OF_A_STEP
        self.reliability = np.zeros((BINS, 3))  # groups, sum of predicted chances, groups that varied; by chance

    @property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Number of graded groups of each prompt."""
        return self.columns["groups"].astype(np.int64)

    def add(self, groups: Groups, predicted: Prediction | None = None) -> dict[str, float]:
        """Adds the groups of one step.

        Args:
            groups: Graded groups of the step.
            predicted: Mean and standard deviation of each pass rate, and chance to vary, as predicted before the step;
                null if nothing is predicted.

        Returns:
            What the step was, and how well it was predicted, by name.
        """
        rows = groups.rows
        for name, values in (
            ("groups", 1.0),
            ("right", groups.right),
            ("graded", groups.graded),
            ("tokens", groups.tokens),
        ):
            self.columns[name][rows] += values
        self.columns["last_step"][rows] = len(self.steps)
        measured = groups.right / groups.graded
        said = {
            "pass_rate": float(measured.mean()),
            "effective": float(groups.varied.mean()),
            "unseen": float((self.columns["groups"] == 0).mean()),
        }
        if predicted is not None:
            said |= self._compare(groups, measured, predicted)
        self.steps.append(tuple(said.get(name, np.nan) for name in OF_A_STEP))
        return said

    def _compare(self, groups: Groups, measured: Float[np.ndarray, " P"], predicted: Prediction) -> dict[str, float]:
        rate, _, chance = predicted
        for name, values in zip(PREDICTIONS, predicted, strict=True):
            self.columns[name][groups.rows] = values
        into = np.minimum((chance * BINS).astype(int), BINS - 1)
        np.add.at(self.reliability, into, np.stack([np.ones(len(chance)), chance, groups.varied], 1))
        return {
            "pass_rate_predicted": float(rate.mean()),
            "effective_predicted": float(chance.mean()),
            "brier": float(((chance - groups.varied) ** 2).mean()),
            "pass_rate_error": float(np.abs(rate - measured).mean()),
        }

    def serve(self, rows: Int[np.ndarray, " P"]) -> None:
        """Counts the prompts of a step as served, also those of which no answer was graded.

        Args:
            rows: Pool rows of the prompts.
        """
        self.columns["times_served"][rows] += 1

    def wait(self, rows: Int[np.ndarray, " n"], why: str) -> None:
        """Counts prompts that waited behind the others while a batch was served.

        Args:
            rows: Pool rows of the prompts.
            why: Reason, such as "chance to vary below 0.3".
        """
        if why not in self.reasons:
            self.reasons.append(why)
        self.columns["waits"][rows] += 1
        self.columns["why"][rows] = self.reasons.index(why)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that `serve`, `add` and `wait` change."""
        return {
            "columns": {name: torch.from_numpy(values.copy()) for name, values in self.columns.items()},
            "reasons": list(self.reasons),
            "steps": torch.tensor(self.steps, dtype=torch.float64).reshape(-1, len(OF_A_STEP)),
            "reliability": torch.from_numpy(self.reliability.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.columns = {name: values.numpy().copy() for name, values in state["columns"].items()}
        self.reasons = list(state["reasons"])
        self.steps = [tuple(step) for step in state["steps"].tolist()]
        self.reliability = state["reliability"].numpy().copy()
