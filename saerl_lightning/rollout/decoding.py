"""The decoding loop of a Hugging Face model over groups: prefill each prompt once, then one token a row and step.

Finished rows leave the batch. There is no continuous batching: a batch is as long as its longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saerl_lightning.records import Sampling
from saerl_lightning.rollout.cache import make_cache
from saerl_lightning.rollout.completion import EndTest
from saerl_lightning.rollout.draw import draw

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACT_BELOW = 0.75  # share of unfinished rows under which finished rows are dropped from the cache, which copies it


class Decoder:
    """The rows that are still being completed: their cache, positions and mask. One object, one batch of groups.

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


def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Float[Tensor, "R M"],
    sampling: Sampling,
    ends: EndTest,
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Completes each of P prompts G times.

    Args:
        model: the policy, in evaluation mode.
        prompts: P lists of token ids.
        uniform: one random number a row and step.
        sampling: group size, temperature, top_k, top_p and max_tokens.
        ends: tells which completions end with their last token.

    Returns:
        R completions, the log-probabilities of their tokens, and whether max_tokens cut them off.
    """
    rows = torch.arange(len(prompts) * sampling.group_size, device=model.device)  # the unfinished, and some finished
    tokens = torch.zeros(len(rows), sampling.max_tokens, dtype=torch.long, device=model.device)  # (R, M)
    logprobs = torch.zeros(tokens.shape, device=model.device)  # (R, M)
    lengths = torch.zeros_like(rows)  # (R,)
    done = torch.zeros_like(rows, dtype=torch.bool)  # over `rows`
    cut = torch.ones_like(done)  # (R,)
    decoder = Decoder(model, prompts, sampling.group_size, sampling.max_tokens)
    logits = decoder.prefill()
    for step in range(sampling.max_tokens):
        chosen, logp = draw(logits, uniform[rows, step], sampling.temperature, sampling.top_k, sampling.top_p)
        # A finished row goes on writing until it is dropped; its length says where to stop reading.
        tokens[rows, step], logprobs[rows, step] = chosen, logp
        lengths[rows] += ~done
        done |= ends(tokens[rows, : step + 1])
        cut[rows] = ~done
        going = len(rows) - int(done.sum())
        if going == 0 or step + 1 == sampling.max_tokens:
            break
        if going < COMPACT_BELOW * len(rows):
            kept = (~done).nonzero().squeeze(1)
            rows, done, chosen = rows[kept], done[kept], chosen[kept]
            decoder.keep(kept)
        logits = decoder.step(chosen)
    spans = lengths.tolist()
    return _cut(tokens, spans), _cut(logprobs, spans), cut.tolist()


def _cut(values: Tensor, spans: list[int]) -> list[list]:
    """The first `spans[r]` entries of every row, as lists."""
    return [row[:span] for row, span in zip(values.tolist(), spans, strict=True)]
