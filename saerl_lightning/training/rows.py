"""Rows of one optimiser step, their split into micro-batches of at most `micro_tokens` tokens, and the loss's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.reweighting.reweighting import WeighedRows
from saerl_lightning.records import Rollouts


def padded_cut(rows: Sequence[int], lengths: Sequence[int], budget: int, by_length: bool = True) -> list[list[int]]:
    """Splits rows into groups of at most `budget` tokens, padding included.

    Args:
        rows: Indices of the rows to split.
        lengths: Number of tokens of every row, prompt and completion.
        budget: Largest number of tokens of a micro-batch; a single longer row gets its own.
        by_length: Whether rows of similar length are put together, longest first, so that the largest memory use occurs
            first.
    """
    groups: list[list[int]] = []
    widest = 0
    for row in sorted(rows, key=lambda r: -lengths[r]) if by_length else rows:
        widest = max(widest, lengths[row])
        if not groups or (len(groups[-1]) + 1) * widest > budget:
            groups.append([])
            widest = lengths[row]
        groups[-1].append(row)
    return groups


def packed_cut(
    rows: Sequence[int],
    prompts: Sequence[int],
    starts: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    by_length: bool = True,
) -> list[list[int]]:
    """Splits rows that share their prompt's tokens into groups of at most `budget` tokens.

    Args:
        rows: Indices of the rows to split, with the rows of a prompt together.
        prompts: Index of the prompt of every row.
        starts: Number of prompt tokens of every row, which count once for all rows of the prompt in a micro-batch.
        lengths: Number of tokens of every row, prompt and completion.
        budget: Largest number of tokens of a micro-batch; a single longer row gets its own.
        by_length: Whether micro-batches are filled with the largest groups first, which gives fewer micro-batches.
    """
    pieces = list(_pieces(rows, prompts, starts, lengths, budget))
    sizes: list[int] = []
    groups: list[list[int]] = []
    for size, piece in sorted(pieces, key=lambda p: -p[0]) if by_length else pieces:
        open_ones = range(len(groups)) if by_length else range(len(groups))[-1:]
        place = next((i for i in open_ones if sizes[i] + size <= budget), None)
        if place is None:
            sizes.append(size)
            groups.append(piece)
        else:
            sizes[place] += size
            groups[place] += piece
    return groups


def _pieces(
    rows: Sequence[int], prompts: Sequence[int], starts: Sequence[int], lengths: Sequence[int], budget: int
) -> Iterator[tuple[int, list[int]]]:
    """Yields each prompt's rows with their tokens, in several pieces if they exceed the budget together."""
    for _, members in groupby(rows, key=lambda r: prompts[r]):
        size, piece = 0, []
        for row in members:
            own = lengths[row] - starts[row]
            if piece and size + own > budget:
                yield size, piece
                size, piece = 0, []
            size += own if piece else lengths[row]
            piece.append(row)
        yield size, piece


Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cut:
    """Settings of the split of rows into micro-batches.

    Args:
        budget: Largest number of tokens that go through the model at once.
        packed: Whether rows of a prompt share its tokens and need no padding.
        by_length: Whether rows are sorted by length first.
    """

    budget: int
    packed: bool = False
    by_length: bool = True


@dataclass(frozen=True)
class StepRows:
    """Rows of a step, or of one micro-batch, with everything that an update needs.

    Each `with_...` method returns a new record with more fields: advantages come after the reference.
    """

    tokens: Int[Tensor, "R T"]
    completion: Bool[Tensor, "R T"]  # all tokens behind the prompt, gaps included
    own: Bool[Tensor, "R T"]  # those that the policy wrote, which are scored
    mask: Bool[Tensor, "R T"]  # those of them in rows that are trained on
    prompts: Int[Tensor, " R"]  # the prompt each row belongs to
    starts: list[int]  # R, tokens of the prompt
    lengths: list[int]  # R, prompt and completion
    max_tokens: int  # longest completion that sampling allows
    sampler_logprobs: Float[Tensor, "R T"]
    advantages: Float[Tensor, " R"]
    scored: list[int]  # rows that go through the policy
    old_logprobs: Float[Tensor, "R T"] | None = None  # of the policy before the first update; None while not known
    reference: Float[Tensor, "R T"] | None = None
    weights: Float[Tensor, "R T"] | None = None  # of the gain; None for 1
    replayed: Bool[Tensor, " R"] | None = None  # rows that an earlier step sampled; None for none of them
    entropy_floor: float = -torch.inf
    step_rows: float = 1.0
    step_tokens: float = 1.0
    scored_tokens: float = 1.0

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Rollouts,
        trained: Bool[Tensor, " R"],
        max_tokens: int,
        device: torch.device,
        replayed: Bool[Tensor, " P"] | None = None,
    ) -> StepRows:
        """Builds the rows, without advantages yet; the loss uses those that are `trained`, all of which are scored."""
        lengths, count = rollouts.lengths.tolist(), len(rollouts.texts)
        own = rollouts.own.to(device)
        return cls(
            tokens=rollouts.tokens.to(device),
            completion=rollouts.mask.to(device),
            own=own,
            mask=own & trained.to(device)[:, None],
            prompts=torch.arange(count, device=device) // rollouts.group_size,
            starts=rollouts.starts.tolist(),
            lengths=lengths,
            max_tokens=max_tokens,
            sampler_logprobs=rollouts.logprobs.to(device),
            advantages=torch.zeros(count, device=device),
            scored=_at_least_one(trained, lengths),
            replayed=None if replayed is None else replayed.repeat_interleave(rollouts.group_size).to(device),
        )

    def with_reference(self, reference: Float[Tensor, "R T"]) -> StepRows:
        """Returns these rows with the frozen reference's log-probabilities."""
        return replace(self, reference=reference)

    def with_old(self, logprobs: Float[Tensor, "R T"], entropy_floor: float = -torch.inf) -> StepRows:
        """Returns these rows with old log-probabilities and the floor of the top-entropy mask."""
        return replace(self, old_logprobs=logprobs, entropy_floor=entropy_floor)

    def with_advantages(self, advantages: Float[Tensor, "P G"], skip_zero: bool, mean_over_ranks: Reduce) -> StepRows:
        """Returns these rows with advantages and the size of the step; rows with advantage 0 may be skipped.

        A rank's loss is divided by the *mean* row and token counts over ranks. Data-parallel training averages the
        ranks' gradients, so together this is the sum over all rows divided by the total count. Every rank scores at
        least one row: all ranks must take part in the exchange of gradients, and an optimiser needs zeros instead of
        missing gradients.
        """
        worth = advantages.flatten().to(self.advantages)
        scored = self.scored
        if skip_zero:
            scored = _at_least_one((self.mask.any(1) & (worth != 0)).cpu(), self.lengths)
        counts = [self.mask.any(1).sum(), self.mask.sum(), self.mask[scored].sum()]
        sizes = mean_over_ranks(torch.stack(counts).to(torch.float32)).clamp(min=1).tolist()
        rows, tokens, scored_tokens = sizes
        return replace(
            self, advantages=worth, scored=scored, step_rows=rows, step_tokens=tokens, scored_tokens=scored_tokens
        )

    def keeping(self, kept: Bool[Tensor, " R"]) -> StepRows:
        """Returns these rows with only the given ones in the loss."""
        mask = self.mask & kept.to(self.mask.device)[:, None]
        return replace(self, mask=mask, scored=_at_least_one(mask.any(1).cpu(), self.lengths))

    def to_weigh(self, advantages: Float[Tensor, "P G"], labels: Float[Tensor, " P"]) -> WeighedRows:
        """Returns what a reweighting reads of these rows.

        Probabilities are the sampler's unless the policy's own are known: one step ahead the sampler is a batch behind.

        Args:
            advantages: Advantages of the rows.
            labels: Label of each prompt; NaN without one.
        """
        return WeighedRows(
            advantages=advantages.flatten().to(self.advantages),
            mask=self.mask,
            probabilities=(self.sampler_logprobs if self.old_logprobs is None else self.old_logprobs).exp(),
            labels=labels.to(self.advantages)[self.prompts],
        )

    def with_weights(self, weights: Float[Tensor, "R T"]) -> StepRows:
        """Returns these rows with weights of the gain."""
        return replace(self, weights=weights)

    def metrics(self) -> dict[str, float]:
        """How much of these rows the policy scores, and the range of their weights if there are some."""
        scored = {
            "rollouts/scored_frac": len(self.scored) / len(self.lengths),
            "rollouts/scored_tokens": float(self.scored_row_tokens),
        }
        if self.weights is None or not self.mask.any():
            return scored
        found = self.weights[self.mask]
        return {**scored, "policy/weight/min": found.min().item(), "policy/weight/max": found.max().item()}

    def kept_share(self, trained: Bool[Tensor, "P G"]) -> dict[str, float]:
        """Share of the completions in the loss among those that would be there without a choice."""
        return {"rollouts/kept_frac": self.mask.any(1).sum().item() / max(1, int(trained.sum()))}

    @property
    def scored_row_tokens(self) -> int:
        """Number of tokens of the scored rows, gaps included, with the prompt counted in each row."""
        return sum(self.lengths[row] for row in self.scored)

    def mean(self, values: Float[Tensor, "R T"]) -> Float[Tensor, ""]:
        """Share of these rows in a mean over the step's scored tokens."""
        return (values.detach() * self.mask).sum() / self.scored_tokens

    @property
    def scored_mask(self) -> Bool[Tensor, "R T"]:
        """True at tokens that the loss uses and the policy scores, and that no earlier step sampled."""
        kept = torch.zeros_like(self.prompts, dtype=torch.bool)
        kept[self.scored] = True
        return self.mask & (kept if self.replayed is None else kept & ~self.replayed)[:, None]

    def micro_batches(self, cut: Cut) -> list[list[int]]:
        """Splits the scored rows into micro-batches of row positions."""
        if cut.packed:
            prompts = self.prompts.tolist()
            return packed_cut(self.scored, prompts, self.starts, self.lengths, cut.budget, cut.by_length)
        return padded_cut(self.scored, self.lengths, cut.budget, cut.by_length)

    def parts(self, micro_batches: Sequence[Sequence[int]], forwards: int) -> Iterator[StepRows]:
        """Yields the rows of each micro-batch; then the last ones again, without any token in the loss.

        Args:
            micro_batches: Positions of the rows of each micro-batch.
            forwards: Number of parts, at least that of the micro-batches: what the rank that has the most needs.
        """
        last = self
        for last in map(self.of_rows, micro_batches):
            yield last
        for _ in range(forwards - len(micro_batches)):
            yield replace(last, mask=torch.zeros_like(last.mask))

    def of_rows(self, positions: Sequence[int]) -> StepRows:
        """Selects rows by position, trimmed to the longest of them; the sizes stay those of the whole step."""
        rows = torch.tensor(positions, device=self.tokens.device)
        lengths = [self.lengths[row] for row in positions]
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(
            self,
            starts=[self.starts[row] for row in positions],
            lengths=lengths,
            scored=list(range(len(positions))),
            **{name: v[rows, : max(lengths)] if v.ndim > 1 else v[rows] for name, v in tensors.items()},
        )

    def joined(
        self, micro_batches: Sequence[Sequence[int]], values: Sequence[Float[Tensor, "_ _"]]
    ) -> Float[Tensor, "R T"]:
        """Joins the values of all micro-batches into an array over the step's rows; 0 for rows without a value."""
        out = torch.zeros_like(self.sampler_logprobs)
        for positions, part in zip(micro_batches, values, strict=False):  # repeated parts follow them
            out[torch.tensor(positions, device=out.device), : part.shape[1]] = part.float()
        return out

    def inputs(self, logprobs: Float[Tensor, "R T"], entropy: Float[Tensor, "R T"]) -> LossInputs:
        """Inputs of the objective for these rows.

        If the old log-probabilities are not known, this is the first update. Its forward uses the weights that sampled,
        so `logprobs` are also the old ones, and an on-policy step needs no second forward. Those of replayed rows are
        the log-probabilities that they were sampled with.
        """
        old = logprobs.detach().float() if self.old_logprobs is None else self.old_logprobs
        if self.replayed is not None:
            old = torch.where(self.replayed[:, None], self.sampler_logprobs, old)
        return LossInputs(
            logprobs=logprobs,
            old_logprobs=old,
            sampler_logprobs=self.sampler_logprobs,
            entropy=entropy,
            mask=self.mask,
            advantages=self.advantages,
            reference=self.reference,
            step_rows=self.step_rows,
            step_tokens=self.step_tokens,
            scored_tokens=self.scored_tokens,
            max_tokens=self.max_tokens,
            entropy_floor=self.entropy_floor,
            weights=self.weights,
        )


def _at_least_one(chosen: Bool[Tensor, " R"], lengths: Sequence[int]) -> list[int]:
    """Indices of the chosen rows; that of the shortest row if none is chosen."""
    return chosen.nonzero().flatten().tolist() or [min(range(len(lengths)), key=lambda r: lengths[r])]
