"""What an SAE is judged by: sparsity, explained variance, dead and dense features, and the model's loss with it.

The sums are kept over batches and reduced over ranks; nothing here knows a model or a trainer. n positions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from saerl_lightning.sae.harvest import TokenRows
from saerl_lightning.signals.model import pooled_positions, replaced_output

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE
    from transformers import PreTrainedModel


Replacement = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]


@torch.inference_mode()
def spliced_loss(
    model: PreTrainedModel, layer: int, rows: TokenRows, replacement: Replacement | None = None
) -> Float[Tensor, ""]:
    """Sums the next-token loss over the predictions made at replaced positions.

    Args:
        model: whole, in evaluation mode, on the rows' device.
        layer: whose output is replaced, from 0.
        rows: what the model reads.
        replacement: makes new outputs of old ones, for all replaced positions at once; null leaves them.
    """
    where = pooled_positions(rows.mask)

    def replace(stream: Float[Tensor, "B T d"], _given: Mapping[str, Any]) -> Float[Tensor, "B T d"]:
        if replacement is None:
            return stream
        changed = stream.clone()
        changed[where] = replacement(stream[where]).to(stream)
        return changed

    with replaced_output(model, layer, replace):
        logits = model(input_ids=rows.tokens, attention_mask=rows.mask.long(), use_cache=False).logits
    asked = predictions(rows)
    return cross_entropy(logits[:, :-1][asked].float(), rows.tokens[:, 1:][asked], reduction="sum")


def predictions(rows: TokenRows) -> Bool[Tensor, "B T-1"]:
    """Replaced positions with a real token after them."""
    return pooled_positions(rows.mask)[:, :-1] & rows.mask[:, 1:]


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


class HeldOutText(nn.Module):
    """Accumulates the numbers of one validation.

    Sparsity and explained variance count equal positions once: the head of a chat template, which is the same for every
    prompt and learned by heart at once, would otherwise flatter the SAE. The loss counts every prediction.

    Args:
        width: of the activations (d).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reconstruction = Reconstruction(width)
        self.loss = SplicedLoss()
        self._references: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # losses that no SAE is in

    def begin(self, model: PreTrainedModel, layer: int, sae: SAE[Any]) -> None:
        """Takes what is judged, and the whole model that it is judged in."""
        self._parts = model, layer, sae.to(model.device)  # in a tuple, so that they are no submodules
        self.reconstruction.reset()
        self.loss.reset()

    @torch.inference_mode()
    def add(self, rows: TokenRows, index: int) -> None:
        """Runs the model with the reconstruction in place of the layer's output; on a batch's first visit also without.

        Args:
            rows: held-out text.
            index: that names these rows.
        """
        model, layer, sae = self._parts
        place = self.reconstruction.positions.device
        rows = TokenRows(*(each.to(model.device) for each in rows))
        fresh = rows.fresh[pooled_positions(rows.mask)]

        def reconstruct(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
            acts = sae.encode(x.to(sae.W_dec.dtype))
            y = sae.decode(acts)
            active = firing_counts(acts[fresh]).sum()
            self.reconstruction.update(x[fresh].to(place), y[fresh].to(place), active.to(place))
            return y

        if index not in self._references:
            others = None, torch.zeros_like, average
            clean, zeroed, averaged = (spliced_loss(model, layer, rows, other) for other in others)
            self._references[index] = clean, zeroed, averaged
        clean, zeroed, averaged = (loss.to(place) for loss in self._references[index])
        spliced = spliced_loss(model, layer, rows, reconstruct).to(place)
        self.loss.update(clean, spliced, zeroed, averaged, int(predictions(rows).sum()))

    def end(self) -> dict[str, Tensor]:
        """The numbers over all ranks; lets go of the model."""
        del self._parts
        return {**self.reconstruction.compute(), **self.loss.compute()}


def average(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The mean of some activations in place of each."""
    return x.mean(0, keepdim=True).expand_as(x)
