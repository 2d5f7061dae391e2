"""Ends a run when it has generated enough tokens, so that arms whose completions differ in length cost the same."""

from __future__ import annotations

from typing import Any

import lightning

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import LongCount, require_in_range


class TokenBudget(lightning.Callback):
    """Stops training after the step that brings the generated tokens to the budget; a last validation follows.

    Tokens of all generated completions count, on all processes, also of groups that were replaced or that taught nothing;
    those of evaluation do not.

    Args:
        tokens: of completions, over the whole run.

    Raises:
        InputError: if `tokens` is below 1.
    """

    def __init__(self, tokens: LongCount) -> None:
        self.tokens = tokens
        self.generated = 0
        require_in_range(self)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step's tokens."""
        tokens = trainer.callback_metrics.get("rollouts/generated_tokens")
        if tokens is None:
            raise InputError(
                "TokenBudget counts what GRPOModule logs, and this module logs no generated tokens; leave it out"
            )
        self.generated += int(tokens)
        if self.generated >= self.tokens:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Holds the tokens so far."""
        return {"generated": self.generated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from there."""
        self.generated = round(state_dict["generated"])
