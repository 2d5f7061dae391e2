"""ServedHistory: what was served and graded so far in a run, what had been predicted of it, and how well.

N prompts in the pool, P prompts of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.online.operation import Groups

BINS = 10  # of predicted chances, in the table of reliability
COUNTS = ("groups", "right", "graded", "tokens", "last_step")
PREDICTIONS = ("pass_rate_predicted", "pass_rate_sd", "chance_predicted")

Prediction = tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"], Float[np.ndarray, " P"]]


class ServedHistory:
    """Counts of every prompt, the predictions at its latest step, and a table of reliability.

    Args:
        pool: Number of prompts in the pool (N).
    """

    def __init__(self, pool: int) -> None:
        self.steps = 0  # number of steps learned from
        self.columns = {name: np.zeros(pool) for name in COUNTS} | {name: np.full(pool, np.nan) for name in PREDICTIONS}
        self.columns["last_step"] -= 1  # never
        self.reliability = np.zeros((BINS, 3))  # groups, sum of predicted chances, groups that varied; by chance

    @property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Number of graded groups of each prompt."""
        return self.columns["groups"].astype(np.int64)

    def add(self, groups: Groups, predicted: Prediction) -> dict[str, float]:
        """Adds the groups of one step.

        Args:
            groups: Graded groups of the step.
            predicted: Mean and standard deviation of each pass rate, and chance to vary, as predicted before the step.

        Returns:
            How well the step was predicted, by name.
        """
        rows, varied = groups.rows, groups.varied
        for name, values in (
            ("groups", 1.0),
            ("right", groups.right),
            ("graded", groups.graded),
            ("tokens", groups.tokens),
        ):
            self.columns[name][rows] += values
        self.columns["last_step"][rows] = self.steps
        for name, values in zip(PREDICTIONS, predicted, strict=True):
            self.columns[name][rows] = values
        rate, _, chance = predicted
        into = np.minimum((chance * BINS).astype(int), BINS - 1)
        np.add.at(self.reliability, into, np.stack([np.ones(len(rows)), chance, varied], 1))
        self.steps += 1
        return {
            "effective_predicted": float(chance.mean()),
            "effective": float(varied.mean()),
            "brier": float(((chance - varied) ** 2).mean()),
            "pass_rate_error": float(np.abs(rate - groups.right / groups.graded).mean()),
            "unseen": float((self.columns["groups"] == 0).mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that `add` changes."""
        columns = {name: torch.from_numpy(values.copy()) for name, values in self.columns.items()}
        return {"steps": self.steps, "columns": columns, "reliability": torch.from_numpy(self.reliability.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.steps, self.reliability = state["steps"], state["reliability"].numpy().copy()
        self.columns = {name: values.numpy().copy() for name, values in state["columns"].items()}
