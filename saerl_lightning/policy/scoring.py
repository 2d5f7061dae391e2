"""Scores completion tokens by one of four equal ways: prompt shared or repeated, output head tiled or whole.

All ways give the same values and gradients up to rounding. Which of them a model supports is tested once, before
training. Letters: R rows of T tokens, N completion tokens, V tokens in the vocabulary, d width of the hidden states.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from saerl_lightning.policy.logprobs import (
    chunked_logprobs,
    completion_positions,
    head_logits,
    output_head,
    predicting_states,
    score,
    spread,
    transforms_logits,
)
from saerl_lightning.policy.prefix import pack_groups, why_not_packed
from saerl_lightning.policy.prefix import predicting_states as packed_states
from saerl_lightning.policy.weights import with_whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Bytes of a tile's float32 logits. Half of it is 15 % slower on a CPU.
TILE_BYTES = {"cpu": 2**25, "cuda": 2**28}
# Most bytes of probabilities that are stored for the backward pass; further tiles are computed again.
KEPT_BYTES = {"cpu": 2**28, "cuda": 2**30}


class TiledHead(torch.autograd.Function):
    """Computes log-softmax(h W^T / temperature) at the targets, and the entropies, with gradients for h and W.

    With q the softmax, g the gradient that reaches a log-probability and e that of an entropy H, the gradient of the
    logits is g (onehot - q) - e q (log q + H), over the temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "N d"],
        weight: Float[Tensor, "V d"],
        targets: Int[Tensor, " N"],
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Computes log-probabilities and entropies in float32; entropies carry a gradient only with `entropy_gradient`."""
        tile, kept_tiles = _tiling(hidden, weight, any(ctx.needs_input_grad))
        logprobs, entropy, totals, kept = [], [], [], []
        for number, (h, t) in enumerate(zip(hidden.split(tile), targets.split(tile), strict=True)):
            z, p = _exponentials(h, weight, temperature)
            totals.append(p.sum(1))  # (n,)
            log_total = totals[-1].log()
            logprobs.append(z.gather(1, t[:, None]).squeeze(1) - log_total)
            entropy.append(log_total - torch.linalg.vecdot(p, z) / totals[-1])
            if number < kept_tiles:
                kept.append(p)
        out = torch.cat(logprobs), torch.cat(entropy)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(totals), out[1], *kept)
        ctx.tile, ctx.temperature, ctx.entropy_gradient = tile, temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(out[1])
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Goes through the tiles again; each gives its rows of the hidden gradient and a part of the weight's gradient."""
        hidden, weight, targets, totals, entropy, *kept = ctx.saved_tensors
        g_logp, g_entropy = (g / ctx.temperature for g in grads)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for number, start in enumerate(range(0, len(hidden), ctx.tile)):
            rows = slice(start, start + ctx.tile)
            # A stored tile is overwritten in place: its memory becomes that of the logits' gradient.
            p = kept[number] if number < len(kept) else _exponentials(hidden[rows], weight, ctx.temperature)[1]
            scale, g = 1 / totals[rows, None], g_logp[rows, None]
            if ctx.entropy_gradient:
                q = p.mul_(scale)
                slope = torch.special.xlogy(q, q).add_(q * entropy[rows, None]).mul_(g_entropy[rows, None])
                dz = q.mul_(-g).sub_(slope)
            else:
                dz = p.mul_(-g * scale)
            dz = dz.scatter_add_(1, targets[rows, None], g).to(weight.dtype)
            if d_hidden is not None:
                torch.mm(dz, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight.addmm_(dz.T, hidden[rows])
        return d_hidden, d_weight, None, None, None


def _tiling(hidden: Float[Tensor, "N d"], weight: Float[Tensor, "V d"], training: bool) -> tuple[int, int]:
    """Number of rows of a tile, and number of tiles that are stored for the backward pass."""
    kind = "cpu" if hidden.device.type == "cpu" else "cuda"
    row_bytes = 4 * len(weight)
    tile = max(1, TILE_BYTES[kind] // row_bytes)
    return tile, KEPT_BYTES[kind] // (tile * row_bytes) if training else 0


def _exponentials(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "V d"], temperature: float
) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"]]:
    """Computes logits minus each row's largest, in float32, and their exponentials: an unnormalised softmax."""
    z = (hidden @ weight.T).float()
    if temperature != 1.0:
        z = z.div_(temperature)
    z = z.sub_(z.amax(1, keepdim=True))
    return z, z.exp()


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """Scores completion tokens under a policy.

    Args:
        temperature: Softmax temperature that the rows were sampled at.
        shared_prefix: Whether the prompt of neighbouring rows is computed once.
        tiled_head: Whether logits are computed in tiles, so that those of all tokens are never in memory at once.
        entropy_gradient: Whether entropies carry a gradient.
    """

    temperature: float = 1.0
    shared_prefix: bool = False
    tiled_head: bool = False
    entropy_gradient: bool = False

    def suited(self, model: PreTrainedModel, max_tokens: int) -> Scorer:
        """Returns this scorer without the options that the model does not support, and logs the reasons.

        Args:
            model: Policy whose tokens will be scored.
            max_tokens: Length of the longest row, in tokens.
        """
        shared, tiled = self.shared_prefix, self.tiled_head
        if shared and (reason := _why_not_shared(model, max_tokens)):
            log.warning("every completion computes its prompt again: %s", reason)
            shared = False
        if tiled and (reason := why_not_tiled(model)):
            log.warning("the logits of up to 1,024 tokens are held at a time: %s", reason)
            tiled = False
        return Scorer(self.temperature, shared, tiled, self.entropy_gradient)

    def __call__(
        self,
        model: PreTrainedModel,
        tokens: Int[Tensor, "R T"],
        mask: Bool[Tensor, "R T"],
        prompts: Int[Tensor, " R"],
        own: Bool[Tensor, "R T"] | None = None,
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Computes log-probabilities (with gradient) and entropies of completion tokens, in float32; zero elsewhere.

        Args:
            model: Policy that scores the tokens.
            tokens: Rows of [prompt | completion | padding].
            mask: True at completion tokens, gaps included; each row has at least one, and they are neighbours.
            prompts: Index of each row's prompt; rows of one prompt are neighbours.
            own: True at the completion tokens that are scored; others are seen only. Null scores all of them.
        """
        return with_whole_weights(model, self._score, model, tokens, mask, prompts, mask if own is None else own)

    def _score(
        self,
        model: PreTrainedModel,
        tokens: Int[Tensor, "R T"],
        mask: Bool[Tensor, "R T"],
        prompts: Int[Tensor, " R"],
        scored: Bool[Tensor, "R T"],
    ) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
        if not (self.shared_prefix or self.tiled_head):
            return score(model, tokens, scored, self.temperature, self.entropy_gradient)
        positions = completion_positions(scored)  # (N,)
        if self.shared_prefix:
            hidden = packed_states(model, pack_groups(tokens, mask, prompts, scored))  # (N, d)
        else:
            hidden = predicting_states(model, tokens, positions)
        logprobs, entropy = self._head(model, hidden, tokens.flatten()[positions])
        return spread(logprobs, positions, tokens.shape), spread(entropy, positions, tokens.shape)

    def _head(
        self, model: PreTrainedModel, hidden: Float[Tensor, "N d"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        if self.tiled_head:
            weight = output_head(model).weight
            assert isinstance(weight, Tensor)
            temperature = self.temperature or 1.0  # greedy rows are scored at 1
            return TiledHead.apply(hidden, weight, targets, temperature, self.entropy_gradient)  # pyright: ignore[reportReturnType]
        return chunked_logprobs(head_logits(model, hidden), targets, self.temperature, self.entropy_gradient)


def why_not_tiled(model: PreTrainedModel) -> str | None:
    """Returns the reason why logits are not hidden states times the head's weight; None if they are."""
    head = output_head(model)
    if transforms_logits(model):
        return f"{type(model).__name__} transforms its logits"
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"the output head is no plain linear layer but {head}"
    return None


def _why_not_shared(model: PreTrainedModel, max_tokens: int) -> str | None:
    return "its logits are transformed" if transforms_logits(model) else why_not_packed(model, max_tokens)
