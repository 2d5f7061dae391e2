"""The model's own loss with something else in place of a layer's output: how much of the model an SAE keeps.

Pure functions over a whole, loaded model. Position 0 and padding are left as they are: an SAE is never trained on the first
position, an attention sink, and replacing it would break the model whatever the SAE is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from saerl_lightning.signals.activations import pooled_positions, replaced_output
from saerl_lightning.training.sae_harvest import TokenRows

if TYPE_CHECKING:
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
