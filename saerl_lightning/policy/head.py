"""The output head in tiles: log-probabilities and entropies of chosen tokens, never the logits of all of them.

N tokens, V words of the vocabulary, d width of the hidden states. A tile's probabilities are kept for the backward pass
while they fit into `KEPT_BYTES`; those of later tiles are computed again there. So memory has a bound that neither N nor
the length of a completion moves. It is exact: the arithmetic of a tile is that of the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = {"cpu": 2**25, "cuda": 2**28}  # float32 logits of a tile; half as much costs a CPU 15 %
KEPT_BYTES = {"cpu": 2**28, "cuda": 2**30}  # most memory that kept probabilities take


class TiledHead(torch.autograd.Function):
    """log softmax(h W^T / temperature) at the targets, and the entropies, with gradients for h and W.

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
        """Log-probabilities and entropies in float32; entropies carry a gradient only where asked for."""
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
        """Walks the tiles again; each gives its rows of the hidden gradient and a share of the weight's."""
        hidden, weight, targets, totals, entropy, *kept = ctx.saved_tensors
        g_logp, g_entropy = (g / ctx.temperature for g in grads)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for number, start in enumerate(range(0, len(hidden), ctx.tile)):
            rows = slice(start, start + ctx.tile)
            # A kept tile is used up here: its memory becomes that of the logits' gradient.
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
    """Rows of a tile, and how many tiles are kept."""
    kind = "cpu" if hidden.device.type == "cpu" else "cuda"
    row_bytes = 4 * len(weight)
    tile = max(1, TILE_BYTES[kind] // row_bytes)
    return tile, KEPT_BYTES[kind] // (tile * row_bytes) if training else 0


def _exponentials(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "V d"], temperature: float
) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"]]:
    """Logits less each row's largest, float32, and their exponentials: the softmax but for each row's sum."""
    z = (hidden @ weight.T).float()
    if temperature != 1.0:
        z = z.div_(temperature)
    z = z.sub_(z.amax(1, keepdim=True))
    return z, z.exp()
