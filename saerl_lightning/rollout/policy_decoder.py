"""PolicyDecoder: decodes by the policy's own forward, so that it fits every causal language model of transformers.

At small sizes most of its time is transformers' Python between the products; `fused_decoder` leaves that out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saerl_lightning.rollout.cache import make_cache
from saerl_lightning.rollout.decoding import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PolicyDecoder(Decoder):
    """Any causal language model of transformers, through its own forward.

    Args:
        model: the policy, in evaluation mode.
        prompts: P lists of token ids.
        group_size: rows a prompt becomes.
        steps: most tokens a completion gets.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], group_size: int, steps: int) -> None:
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)  # (P,)
        self.model = model
        self.prompts = prompts
        self.groups = torch.arange(len(prompts), device=model.device).repeat_interleave(group_size)  # (R,)
        self.width = max(map(len, prompts))
        self.positions = lengths  # (P,), after `prefill` (R,): position of the next token of each row
        self.cache = make_cache(model.config, self.width + steps)
        # Left padding is hidden by a mask; where there is none, attention is faster without.
        slots = torch.arange(self.width + steps, device=model.device)
        self.visible = slots >= (self.width - lengths)[:, None] if len(set(map(len, prompts))) > 1 else None

    def prefill(self) -> Float[Tensor, "R V"]:
        """Runs every prompt once, then repeats it G times in the cache. Returns the logits of the first token."""
        padded = torch.tensor([[0] * (self.width - len(p)) + list(p) for p in self.prompts], device=self.model.device)
        columns = torch.arange(self.width, device=self.model.device)
        positions = (columns - (self.width - self.positions)[:, None]).clamp_min(0)  # (P, width)
        logits = self._forward(padded, positions)
        self.keep(self.groups)
        return logits[self.groups]

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Appends one token to every row and returns the logits of the next."""
        logits = self._forward(tokens[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Int[Tensor, " R"]) -> None:
        """Makes row i what row `rows[i]` was."""
        self.cache.reorder_cache(cast("torch.LongTensor", rows))
        self.positions = self.positions[rows]
        self.visible = None if self.visible is None else self.visible[rows]

    def _forward(self, tokens: Int[Tensor, "R t"], positions: Int[Tensor, "R t"]) -> Float[Tensor, "R V"]:
        """The model's logits after the last of the given tokens."""
        filled = self.cache.get_seq_length() + tokens.shape[1]
        out = self.model(
            input_ids=tokens,
            attention_mask=None if self.visible is None else self.visible[:, :filled],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]
