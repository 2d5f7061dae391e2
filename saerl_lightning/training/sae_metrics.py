"""What an SAE is judged by: sparsity, explained variance, dead and dense features, and the model's loss with it.

The sums are kept over batches and reduced over ranks; nothing here knows a model or a trainer. n positions, F features.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import Metric


def firing_counts(acts: Tensor) -> Float[Tensor, " F"]:
    """Counts the positions that each feature is positive at.

    Args:
        acts: feature activations, (n, F), dense or sparse.
    """
    acts = acts.detach()
    if not acts.is_sparse:
        return (acts > 0).sum(0).float()
    fired = acts._indices()[1][acts._values() > 0]  # each (position, feature) stands there once
    return torch.bincount(fired, minlength=acts.shape[1]).float()


class Reconstruction(Metric):
    """Accumulates mean active features and explained variance.

    Explained variance is 1 - E|x - y|^2 / (E|x|^2 - |E x|^2) over all positions seen, with y the reconstruction of x: the
    share of the total variance, summed over dimensions, that the reconstruction gets right (R^2).
    """

    full_state_update = False
    positions: Tensor
    active: Tensor
    total: Tensor
    squares: Tensor
    residual: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for state in ("positions", "active", "squares", "residual"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), "sum")  # (d,)

    def update(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], active: Tensor) -> None:
        """Adds positions.

        Args:
            x: activations.
            y: their reconstructions.
            active: number of features that fired, summed over the positions.
        """
        x, y = x.detach(), y.detach()
        self.positions += len(x)
        self.active += active
        self.total += x.sum(0)
        self.squares += x.double().pow(2).sum()  # a difference of large sums follows
        self.residual += (x - y).pow(2).sum()

    def compute(self) -> dict[str, Tensor]:
        """`l0` and `explained_variance`; NaN before any position was seen."""
        mean = self.total / self.positions
        variance = self.squares / self.positions - mean.pow(2).sum()
        return {
            "l0": self.active / self.positions,
            "explained_variance": 1 - self.residual / self.positions / variance,
        }


class SplicedLoss(Metric):
    """Accumulates the model's next-token loss: as it is, and with something else in place of the layer's output.

    `ce_score` is (zeroed - spliced) / (zeroed - clean), the field's usual score: 1 where the reconstruction loses nothing, 0
    where it is no better than zeros. Zeros are so far from any activation that a constant, the mean, already scores well
    above 0; so `ce_score_mean` is the same with means in the place of zeros. A score is NaN, not defined, where the model
    does no better with its own layer than with the zeros or means: on text that it was never trained to predict, for one.
    """

    full_state_update = False
    predictions: Tensor
    clean: Tensor
    spliced: Tensor
    zeroed: Tensor
    averaged: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("predictions", "clean", "spliced", "zeroed", "averaged"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), "sum")

    def update(self, clean: Tensor, spliced: Tensor, zeroed: Tensor, averaged: Tensor, predictions: int) -> None:
        """Adds sums of losses over so many predictions: of the model, with reconstructions, zeros and means."""
        self.clean += clean
        self.spliced += spliced
        self.zeroed += zeroed
        self.averaged += averaged
        self.predictions += predictions

    def compute(self) -> dict[str, Tensor]:
        """Losses in nats a token, and the scores."""
        losses = (each / self.predictions for each in (self.clean, self.spliced, self.zeroed, self.averaged))
        clean, spliced, zeroed, averaged = losses
        return {
            "ce_clean": clean,
            "ce_spliced": spliced,
            "ce_zeroed": zeroed,
            "ce_mean": averaged,
            "ce_score": _share_kept(clean, spliced, zeroed),
            "ce_score_mean": _share_kept(clean, spliced, averaged),
        }


def _share_kept(clean: Tensor, spliced: Tensor, without: Tensor) -> Tensor:
    """How much of what the layer earns is left; NaN where it earns nothing."""
    return torch.where(without > clean, (without - spliced) / (without - clean), math.nan)


class FeatureActivity(nn.Module):
    """Which features have fired lately, and how often: buffers, so that checkpoints hold them.

    Args:
        features: F.
        dead_after: positions without firing after which a feature is dead; densities forget at the same pace.
    """

    silent_for: Tensor
    fired: Tensor
    seen: Tensor
    trained: Tensor

    def __init__(self, features: int, dead_after: int) -> None:
        super().__init__()
        self.dead_after = dead_after
        self.register_buffer("silent_for", torch.zeros(features, dtype=torch.int64))  # positions since it last fired
        self.register_buffer("fired", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # positions in all

    def update(self, counts: Float[Tensor, " F"], positions: int) -> None:
        """Adds a step's firing counts, over all ranks."""
        self.silent_for += positions
        self.silent_for[counts > 0] = 0
        self.trained += positions
        self.fired += counts
        self.seen += positions
        if self.seen >= 2 * self.dead_after:  # forget: the sums then stand for the last `dead_after` positions or more
            self.fired /= 2
            self.seen /= 2

    def dead(self) -> Bool[Tensor, " F"]:
        """Features that have not fired for `dead_after` positions."""
        return self.silent_for >= self.dead_after

    def metrics(self) -> dict[str, float]:
        """Dead share, and the spread of densities (the share of positions that a feature fires at)."""
        density = self.fired / self.seen.clamp(min=1)
        median = density.median().item()
        return {
            "dead_share": self.dead().double().mean().item(),
            "density/above_1e-1": (density > 1e-1).double().mean().item(),
            "density/below_1e-5": (density < 1e-5).double().mean().item(),
            "density/median_log10": math.log10(max(median, 1e-10)),
        }
