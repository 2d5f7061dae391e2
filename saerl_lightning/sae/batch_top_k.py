"""BatchTopK over all processes: the k largest activations a position of the whole batch, wherever its parts are."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class BatchTopKOverRanks(nn.Module):
    """Keeps the k·n largest positive activations of the n positions that all processes have together.

    Every process must call it equally often, with equally many positions. Equal values at the limit are all kept, because
    a choice among them would depend on where they are: prompts that begin alike have equal activations, and sae-lens's own
    choice among them made two processes end on other weights than one (in float64, 4e-3 apart after 6 steps).

    Args:
        k: Number of activations kept a position, on average.
        ranks: Number of processes.
    """

    def __init__(self, k: float, ranks: int) -> None:
        super().__init__()
        self.k = k
        self.ranks = ranks
        self.least = 0.0  # smallest kept activation of the last batch, over all processes

    def forward(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Sets all other activations to zero."""
        acts = x.relu()
        limit = self._limit(acts.detach())
        self.least = float(limit)
        return acts * ((acts >= limit) & (acts > 0))

    def _limit(self, acts: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
        kept = int(self.k * acts.shape[:-1].numel() * self.ranks)
        # One process may have all that are kept, so each sends as many as that.
        largest = acts.flatten().topk(min(kept, acts.numel())).values.contiguous()
        if self.ranks > 1:
            parts = [torch.empty_like(largest) for _ in range(self.ranks)]
            torch.distributed.all_gather(parts, largest)
            largest = torch.cat(parts).topk(kept).values
        positive = largest[largest > 0]
        return positive[-1] if len(positive) else largest.new_zeros(())


def choose_over_ranks(sae: Any, ranks: int) -> None:
    """Makes a BatchTopK SAE of sae-lens choose over all processes, in training; its threshold follows the same on each."""
    chosen = BatchTopKOverRanks(sae.cfg.k, ranks)
    sae.activation_fn = chosen

    @torch.no_grad()
    def update_topk_threshold(_acts: Tensor) -> None:
        if chosen.least > 0:
            sae.topk_threshold += sae.cfg.topk_threshold_lr * (chosen.least - sae.topk_threshold)

    sae.update_topk_threshold = update_topk_threshold
