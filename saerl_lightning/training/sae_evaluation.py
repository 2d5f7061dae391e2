"""Held-out text judges an SAE: how few features, how much variance, and what is left of the model's own loss.

It judges the SAE that would be saved (scale folded in, BatchTopK with its threshold), not the one in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saerl_lightning.signals.activations import pooled_positions
from saerl_lightning.training.sae_harvest import TokenRows
from saerl_lightning.training.sae_metrics import Reconstruction, SplicedLoss, firing_counts
from saerl_lightning.training.sae_splice import predictions, spliced_loss

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE
    from transformers import PreTrainedModel


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
