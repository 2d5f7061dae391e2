"""Metrics of an SAE: sparsity, explained variance, dead and dense features, and the model's loss with the SAE spliced in.

Sums are accumulated over batches and reduced over ranks. n positions, F features.
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
    """Sums the next-token loss of predictions at the replaced positions.

    Args:
        model: Complete model in evaluation mode, on the rows' device.
        layer: Layer whose output is replaced, from 0.
        rows: Token rows that the model reads.
        replacement: Function that maps the layer's outputs at all replaced positions to new ones; null keeps them.
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
    """Returns the replaced positions that are followed by a real token."""
    return pooled_positions(rows.mask)[:, :-1] & rows.mask[:, 1:]


def firing_counts(acts: Tensor) -> Float[Tensor, " F"]:
    """Counts the positions at which each feature is positive.

    Args:
        acts: Feature activations, (n, F), dense or sparse.
    """
    acts = acts.detach()
    if not acts.is_sparse:
        return (acts > 0).sum(0).float()
    fired = acts._indices()[1][acts._values() > 0]  # each pair (position, feature) occurs once
    return torch.bincount(fired, minlength=acts.shape[1]).float()


class Reconstruction(Metric):
    """Accumulates the mean number of active features and the explained variance.

    Explained variance is 1 - E|x - y|^2 / (E|x|^2 - |E x|^2) over all positions, where y is the reconstruction of x.
    This is the share of the total variance, summed over dimensions, that is reconstructed (R^2).
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
        """Adds positions to the sums.

        Args:
            x: Activations, (n, d).
            y: Reconstructions of the activations, (n, d).
            active: Number of active features, summed over the positions.
        """
        x, y = x.detach(), y.detach()
        self.positions += len(x)
        self.active += active
        self.total += x.sum(0)
        # float64, because `compute` subtracts two large sums.
        self.squares += x.double().pow(2).sum()
        self.residual += (x - y).pow(2).sum()

    def compute(self) -> dict[str, Tensor]:
        """Computes `l0` and `explained_variance`; NaN if no position was added."""
        mean = self.total / self.positions
        variance = self.squares / self.positions - mean.pow(2).sum()
        return {
            "l0": self.active / self.positions,
            "explained_variance": 1 - self.residual / self.positions / variance,
        }


class SplicedLoss(Metric):
    """Accumulates the model's next-token loss: unchanged, and with the layer's output replaced.

    `ce_score` is (zeroed - spliced) / (zeroed - clean), the usual score: 1 if the reconstruction loses nothing, 0 if it
    is no better than zeros. Because zeros are far from all activations, even a constant (the mean) scores well above 0;
    therefore `ce_score_mean` uses means instead of zeros. A score is NaN if the unchanged model's loss is not below the
    loss with zeros or means, for example on text that the model was never trained to predict.
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
        """Adds summed losses over `predictions` predictions: unchanged, with reconstructions, with zeros, with means."""
        self.clean += clean
        self.spliced += spliced
        self.zeroed += zeroed
        self.averaged += averaged
        self.predictions += predictions

    def compute(self) -> dict[str, Tensor]:
        """Computes the losses in nats per token, and the scores."""
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
    """Computes the share of the layer's benefit that is kept; NaN if the layer has no benefit."""
    return torch.where(without > clean, (without - spliced) / (without - clean), math.nan)


class FeatureActivity(nn.Module):
    """Tracks how often each feature fires, and how long it has not. The buffers are saved in checkpoints.

    Args:
        features: Number of features (F).
        dead_after: Number of positions without firing after which a feature is dead. Densities average over as many.
    """

    silent_for: Tensor
    fired: Tensor
    seen: Tensor
    trained: Tensor

    def __init__(self, features: int, dead_after: int) -> None:
        super().__init__()
        self.dead_after = dead_after
        self.register_buffer("silent_for", torch.zeros(features, dtype=torch.int64))  # positions since it fired
        self.register_buffer("fired", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # positions in total

    def update(self, counts: Float[Tensor, " F"], positions: int) -> None:
        """Adds the firing counts of a step, summed over all ranks."""
        self.silent_for += positions
        self.silent_for[counts > 0] = 0
        self.trained += positions
        self.fired += counts
        self.seen += positions
        # Halving both sums forgets old steps: the sums then stand for the last `dead_after` positions or more.
        if self.seen >= 2 * self.dead_after:
            self.fired /= 2
            self.seen /= 2

    def dead(self) -> Bool[Tensor, " F"]:
        """Returns which features have not fired for `dead_after` positions."""
        return self.silent_for >= self.dead_after

    def metrics(self) -> dict[str, float]:
        """Computes the share of dead features, and the spread of densities (share of positions at which a feature fires)."""
        density = self.fired / self.seen.clamp(min=1)
        median = density.median().item()
        return {
            "dead_share": self.dead().double().mean().item(),
            "density/above_1e-1": (density > 1e-1).double().mean().item(),
            "density/below_1e-5": (density < 1e-5).double().mean().item(),
            "density/median_log10": math.log10(max(median, 1e-10)),
        }


class HeldOutText(nn.Module):
    """Accumulates the metrics of one validation.

    Sparsity and explained variance count equal positions once. Otherwise the beginning of the chat template, which is
    the same for all prompts and easy to reconstruct, would improve the result. The loss counts every prediction.

    Args:
        width: Width of the activations (d).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reconstruction = Reconstruction(width)
        self.loss = SplicedLoss()
        self._references: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # losses without an SAE, per batch

    def begin(self, model: PreTrainedModel, layer: int, sae: SAE[Any]) -> None:
        """Starts a validation of an SAE inside a complete model."""
        # A tuple, because torch would register modules in attributes as submodules and save them.
        self._parts = model, layer, sae.to(model.device)
        self.reconstruction.reset()
        self.loss.reset()

    @torch.inference_mode()
    def add(self, rows: TokenRows, index: int) -> None:
        """Adds the losses of a batch with the reconstruction, and (computed once per batch) without it.

        Args:
            rows: Held-out token rows.
            index: Number of the batch, which identifies its rows.
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
        """Computes the metrics over all ranks, and releases the model."""
        del self._parts
        return {**self.reconstruction.compute(), **self.loss.compute()}


def average(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Replaces each activation by the mean of all."""
    return x.mean(0, keepdim=True).expand_as(x)
