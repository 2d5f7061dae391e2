"""Keys and values of groups: a prompt's are kept once, and all its completions attend to them in one product.

Kept once a row instead, the prompt's keys are read G times at every step: at a prompt of 256 tokens and groups of 8
that is most of a small model's decoding time, and G times the memory. Rows are the cells of a (P, G) grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class GroupCache:
    """One layer's keys and values of P prompts and of their G completions each.

    Args:
        prompt: keys (first index 0) and values (1) of the prompts, padded behind each.
        group_size: G.
        steps: most positions a completion gets (M).
    """

    def __init__(self, prompt: Float[Tensor, "2 P K L D"], group_size: int, steps: int) -> None:
        _, prompts, shared, _, width = prompt.shape
        self.prompt = prompt
        self.own = prompt.new_empty(2, prompts, shared, group_size, steps, width)
        self.filled = 0  # positions of the completions
        self._cut_views()

    def _cut_views(self) -> None:
        """Notes the buffers as the products want them: a step is so short that cutting views would cost a tenth of it."""
        self.prompt_keys = self.prompt[0].flatten(0, 1).transpose(1, 2)  # (PK, D, L)
        self.prompt_values = self.prompt[1].flatten(0, 1)  # (PK, L, D)
        self.own_keys = self.own[0].flatten(0, 2).transpose(1, 2)  # (PKG, D, M)
        self.own_values = self.own[1].flatten(0, 2)  # (PKG, M, D)

    def attend(
        self, heads: Float[Tensor, "P G heads D"], hidden: Float[Tensor, "PK 1 L"] | None
    ) -> Float[Tensor, "P G width"]:
        """Appends one position to every completion and attends from it to its prompt and completion.

        Args:
            heads: of the new position: H queries, K keys, K values. Queries that share a key are neighbours.
            hidden: minus infinity at the padding behind each prompt, else 0; null where there is none.

        Returns:
            The heads' outputs side by side, width = H D.
        """
        (prompts, group, count, width), shared = heads.shape, self.own.shape[2]
        query = heads[:, :, : count - 2 * shared]
        new = heads[:, :, count - 2 * shared :].view(prompts, group, 2, shared, width)
        self.own[:, :, :, :, self.filled] = new.permute(2, 0, 3, 1, 4)
        self.filled += 1
        folded = query.view(prompts, group, shared, -1, width).transpose(1, 2)  # (P, K, G, H/K, D)
        grouped = folded.reshape(prompts * shared, -1, width)  # all queries of a prompt's key: (PK, GH/K, D)
        out = self._products(grouped, hidden)  # (PK, GH/K, D)
        return out.view(prompts, shared, group, -1).transpose(1, 2).reshape(prompts, group, -1)

    def _products(
        self, grouped: Float[Tensor, "PK Gn D"], hidden: Float[Tensor, "PK 1 L"] | None
    ) -> Float[Tensor, "PK Gn D"]:
        """Softmax over the scores of prompt and completion together, times the values of both."""
        width, length = grouped.shape[-1], self.prompt_values.shape[1]
        rows = grouped.view(len(self.own_keys), -1, width)  # (PKG, n, D)
        # Where beta is 0 the first argument is not read.
        to_prompt = torch.baddbmm(
            self.prompt_values[:, :1, :1] if hidden is None else hidden,
            grouped,
            self.prompt_keys,
            beta=0 if hidden is None else 1,
            alpha=width**-0.5,
        )
        to_own = torch.baddbmm(
            self.own_values[:, :1, :1], rows, self.own_keys[:, :, : self.filled], beta=0, alpha=width**-0.5
        )
        scores = torch.cat([to_prompt, to_own.view(len(grouped), -1, self.filled)], dim=-1)
        weights = scores.softmax(-1)  # (PK, Gn, L + t)
        out = torch.bmm(weights[:, :, :length], self.prompt_values)
        own_weights = weights[:, :, length:].view(len(rows), -1, self.filled)
        out.view(rows.shape).baddbmm_(own_weights, self.own_values[:, : self.filled])
        return out

    def keep(self, prompts: Int[Tensor, " p"], cells: Int[Tensor, "p g"]) -> None:
        """Keeps some prompts, and in row p of the new grid the completions of the present cells `cells[p]`."""
        _, _, shared, group, steps, width = self.own.shape
        filled = self.own.transpose(2, 3)[:, cells // group, cells % group, :, : self.filled]  # (2, p, g, K, t, D)
        self.prompt = self.prompt[:, prompts]
        self.own = self.own.new_empty(2, len(cells), shared, cells.shape[1], steps, width)
        self.own[:, :, :, :, : self.filled] = filled.transpose(2, 3)
        self._cut_views()
