"""The rows of a step, cut into micro-batches, and how each of these becomes the inputs of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.records import Rollouts


def padded_cut(rows: Sequence[int], lengths: Sequence[int], budget: int, by_length: bool = True) -> list[list[int]]:
    """Groups rows so that no group holds more than `budget` tokens, padding included.

    Args:
        rows: which rows to cut.
        lengths: tokens of every row, prompt and completion.
        budget: most tokens of a micro-batch; a single longer row still gets a group of its own.
        by_length: put rows of similar length together, the longest first, so that the largest memory need shows at once.
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
    """Groups rows that share their prompt's tokens, so that no group holds more than `budget` tokens.

    Args:
        rows: which rows to cut, those of a prompt behind one another.
        prompts: the prompt of every row.
        starts: tokens of every row's prompt, which count once for all rows of the prompt in one micro-batch.
        lengths: tokens of every row, prompt and completion.
        budget: most tokens of a micro-batch; a single longer row still gets a group of its own.
        by_length: fill micro-batches with the largest groups first, which takes fewer of them.
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
    """Yields each prompt's rows with their tokens, in several pieces where they exceed the budget together."""
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
    """How rows are cut into micro-batches.

    Args:
        budget: most tokens that go through the model at once.
        packed: whether rows of a prompt share its tokens and need no padding.
        by_length: whether rows are sorted by length before.
    """

    budget: int
    packed: bool = False
    by_length: bool = True


@dataclass(frozen=True)
class StepRows:
    """Everything an update needs to know of the sampled rows, or of those of one micro-batch.

    Each `with_...` gives a new record that holds more: advantages come after the reference.
    """

    tokens: Int[Tensor, "R T"]
    written: Bool[Tensor, "R T"]  # completion tokens
    mask: Bool[Tensor, "R T"]  # those of rows that are trained on
    prompts: Int[Tensor, " R"]  # the prompt each row belongs to
    starts: list[int]  # R, tokens of the prompt
    lengths: list[int]  # R, prompt and completion
    max_tokens: int  # longest completion that sampling allows
    sampler_logprobs: Float[Tensor, "R T"]
    advantages: Float[Tensor, " R"]
    scored: list[int]  # rows that go through the policy
    old_logprobs: Float[Tensor, "R T"] | None = None  # of the policy before the first update; None while not known
    reference: Float[Tensor, "R T"] | None = None
    entropy_floor: float = -torch.inf
    step_rows: float = 1.0
    step_tokens: float = 1.0
    scored_tokens: float = 1.0

    @classmethod
    def lay_out(
        cls, rollouts: Rollouts, trained: Bool[Tensor, " R"], max_tokens: int, device: torch.device
    ) -> StepRows:
        """All rows, without advantages yet; the loss sees those that are `trained`, which all are to be scored."""
        lengths, count = rollouts.lengths.tolist(), len(rollouts.texts)
        starts = (rollouts.lengths - rollouts.completion_lengths).tolist()
        written = rollouts.mask.to(device)
        return cls(
            tokens=rollouts.tokens.to(device),
            written=written,
            mask=written & trained.to(device)[:, None],
            prompts=torch.arange(count, device=device) // rollouts.group_size,
            starts=starts,
            lengths=lengths,
            max_tokens=max_tokens,
            sampler_logprobs=rollouts.logprobs.to(device),
            advantages=torch.zeros(count, device=device),
            scored=_at_least_one(trained, lengths),
        )

    def with_reference(self, reference: Float[Tensor, "R T"]) -> StepRows:
        """The same rows with the frozen reference's log-probabilities beside them."""
        return replace(self, reference=reference)

    def with_old(self, logprobs: Float[Tensor, "R T"], entropy_floor: float = -torch.inf) -> StepRows:
        """The same rows with log-probabilities from before the first update, and the floor of the top-entropy mask."""
        return replace(self, old_logprobs=logprobs, entropy_floor=entropy_floor)

    def with_advantages(self, advantages: Float[Tensor, "P G"], skip_zero: bool, mean_over_ranks: Reduce) -> StepRows:
        """The same rows with what each is worth, and the size of the step; rows worth nothing are skipped if they may be.

        A rank's loss is divided by the *mean* row and token counts over ranks, since data-parallel training averages
        the ranks' gradients: together that is the sum over all rows by the total count. Every rank scores a row at
        least, so that all take part in the exchange of gradients, and an optimiser sees zeros, not nothing.
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

    @property
    def scored_row_tokens(self) -> int:
        """Tokens of the rows that go through the policy, prompts counted with each row."""
        return sum(self.lengths[row] for row in self.scored)

    def mean(self, values: Float[Tensor, "R T"]) -> Float[Tensor, ""]:
        """These rows' share of a mean over the step's scored tokens."""
        return (values.detach() * self.mask).sum() / self.scored_tokens

    @property
    def scored_mask(self) -> Bool[Tensor, "R T"]:
        """The tokens the loss sees and the policy scores."""
        kept = torch.zeros_like(self.prompts, dtype=torch.bool)
        kept[self.scored] = True
        return self.mask & kept[:, None]

    def micro_batches(self, cut: Cut) -> list[list[int]]:
        """Positions of the scored rows, micro-batch by micro-batch."""
        if cut.packed:
            prompts = self.prompts.tolist()
            return packed_cut(self.scored, prompts, self.starts, self.lengths, cut.budget, cut.by_length)
        return padded_cut(self.scored, self.lengths, cut.budget, cut.by_length)

    def of_rows(self, positions: Sequence[int]) -> StepRows:
        """Some of the rows, cut off behind the longest of them; the sizes stay those of the whole step."""
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
        """The values of all micro-batches, each at its rows of the step; 0 where there is none."""
        out = torch.zeros_like(self.sampler_logprobs)
        for positions, part in zip(micro_batches, values, strict=True):
            out[torch.tensor(positions, device=out.device), : part.shape[1]] = part.float()
        return out

    def inputs(self, logprobs: Float[Tensor, "R T"], entropy: Float[Tensor, "R T"]) -> LossInputs:
        """What the objective sees of these rows.

        Where the old log-probabilities are not known, this is the first update: its forward runs on the very weights that
        sampled, so that `logprobs` are the old ones too, and an on-policy step needs no second forward.
        """
        return LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach().float() if self.old_logprobs is None else self.old_logprobs,
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
        )


def _at_least_one(chosen: Bool[Tensor, " R"], lengths: Sequence[int]) -> list[int]:
    """Positions of the chosen rows; the shortest row where none is."""
    return chosen.nonzero().flatten().tolist() or [min(range(len(lengths)), key=lambda r: lengths[r])]
