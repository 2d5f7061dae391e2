"""Records that several folders exchange: prompts, batches, rollouts, outcomes.

P prompts a step, G completions a prompt, R = P * G rows, T tokens of the longest row.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, PositiveShare, Range, require_in_range

Temperature = Annotated[float, Range(0, 100)]
SamplerSeed = Annotated[int, Range(0, 2**62)]  # wide, because a run derives one seed per step
COLDEST = 0.01  # lowest temperature that is not greedy

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Prompt:
    """One task for the policy.

    Args:
        uid: Name of the prompt, unique in its pool.
        messages: Chat messages, each with `role` and `content`.
        answer: Correct answer, as text.
        source: Origin of the prompt (a data set or a task).
        topic: Subject of the task; null if unknown.
        labels: Known numbers about the prompt: `difficulty`, `level`, `quality`.
        grading: Further data for the grader, as JSON ("" for none).
        copied_from: Uid of the original prompt, if this prompt is a copy ("" otherwise).
        columns: All columns of the prompt's row by the names that its file gives them, also those that the fields above
            were read from; rewards may read them. Values are those of JSON. A copy or a pickle of it is a plain dict.
    """

    uid: str
    messages: tuple[Message, ...]
    answer: str
    source: str = ""
    topic: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    grading: str = ""
    copied_from: str = ""
    columns: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def asking(cls, uid: str, question: str, answer: str = "", **others: Any) -> Prompt:
        """Returns the prompt of a single message of the user.

        Args:
            uid: Name of the prompt, unique in its pool.
            question: Text of the message.
            answer: Correct answer, as text.
            others: Other fields of the prompt, as `topic="algebra"`.
        """
        return cls(uid, ({"role": "user", "content": question},), answer, **others)

    @property
    def text(self) -> str:
        """Returns the text of all messages but the system's, joined by blank lines."""
        return "\n\n".join(m["content"] for m in self.messages if m["role"] != "system")

    @property
    def normalised_text(self) -> str:
        """Returns `text` without differences of case, spacing or Unicode form. Equal texts are the same question."""
        return " ".join(unicodedata.normalize("NFKC", self.text).casefold().split())


class PromptBatch:
    """P prompts with their token ids and the pool rows they came from.

    A plain class: Lightning's precision plugins (half, double, FSDP, DeepSpeed) rebuild dataclasses and fail on the
    frozen `Prompt`s, but pass plain objects through unchanged.
    """

    def __init__(
        self, prompts: list[Prompt], ids: list[list[int]], rows: list[int], places: Sequence[int] = ()
    ) -> None:
        self.prompts = prompts  # P
        self.ids = ids  # P lists of token ids, chat template applied
        self.rows = rows  # P, positions in the pool
        # P, positions in the batch of all processes, or in the evaluation set: the random numbers depend on them.
        self.places = places or range(len(rows))

    def of_prompts(self, positions: Sequence[int], places: Sequence[int] = ()) -> PromptBatch:
        """Selects prompts by position, in the given order; one may be selected several times.

        Args:
            positions: Positions of the prompts in this batch.
            places: Places of the prompts in the batch of all processes; without any, those of this batch.
        """
        return PromptBatch(
            [self.prompts[p] for p in positions],
            [self.ids[p] for p in positions],
            [self.rows[p] for p in positions],
            places or [self.places[p] for p in positions],
        )


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Args:
        group_size: Number of completions per prompt (G).
        temperature: Temperature of the softmax; 0 is greedy.
        top_p: Probability mass of nucleus sampling, in (0, 1]; 1 keeps all tokens.
        top_k: Number of most likely tokens to sample from; 0 keeps all.
        max_tokens: Maximum length of a completion, in tokens.
        seed: Seed of the sampler, from which each training step derives its own.
        stop: Texts that end a completion.
    """

    group_size: Count = 8
    temperature: Temperature = 1.0
    top_p: PositiveShare = 1.0
    top_k: CountFrom0 = 0
    max_tokens: Count = 256
    seed: SamplerSeed = 0
    stop: tuple[str, ...] = ()
    # Of the prompts of a call in the batch of all processes, if they are a share of it: their samples depend on it.
    places: Sequence[int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses values that no sampler can use."""
        require_in_range(self)
        if 0 < self.temperature < COLDEST:
            raise InputError(
                f"Sampling.temperature is {self.temperature}; write 0 (greedy), or {COLDEST} or more: logits over less "
                "than that overflow, and vLLM raises it unasked"
            )

    @property
    def full_support(self) -> bool:
        """Whether every token can be sampled, so that the sampler's log-probabilities equal the policy's."""
        return self.top_p == 1.0 and self.top_k == 0 and self.temperature > 0

    def placed(self, places: Sequence[int], seed: int) -> Sampling:
        """Returns these settings for prompts at the given places of the batch of all processes, with the batch's seed."""
        made = replace(self, seed=seed)
        object.__setattr__(made, "places", places)
        return made


@dataclass(frozen=True)
class Rollouts:
    """R sampled rows, each [prompt | completion | padding].

    Rows of one prompt are neighbours: row p * G + g is completion g of prompt p. `logprobs` belong to the distribution
    that was sampled from (at the sampling temperature) and are zero outside `own`.

    A completion may have gaps: tokens that the policy did not write, such as the result of a tool. The policy sees them,
    but they are neither scored nor trained on: losses, ratios, lengths, limits and metrics count `own` tokens alone.

    Raises:
        InputError: if a completion has a hole, or a token of the policy is in no completion.
    """

    tokens: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]  # completion tokens, gaps and the end-of-text token included: one stretch a row
    logprobs: Float[Tensor, "R T"]
    truncated: Bool[Tensor, " R"]  # the policy was stopped by max_tokens, not by an end-of-text token or a stop text
    texts: list[str]  # R
    group_size: int  # G
    weight_version: Int[Tensor, " R"]  # version of the weights that sampled the row
    own: Bool[Tensor, "R T"] = None  # pyright: ignore[reportAssignmentType]  # tokens that the policy wrote; default: mask

    def __post_init__(self) -> None:
        """Takes `mask` for `own` if it is not given."""
        if self.own is None:
            object.__setattr__(self, "own", self.mask)
        _require_stretches(self.mask, self.lengths)
        if (self.own & ~self.mask).any():
            row = int((self.own & ~self.mask).any(1).int().argmax())
            raise InputError(
                f"row {row}: a token of the policy (own) is outside the completion (mask); mark it in mask too"
            )

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        rows, width = self.tokens.shape
        return f"<Rollouts: {rows} completions, {self.group_size} a prompt, in rows of {width} tokens>"

    @classmethod
    def pack(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]],
        truncated: Sequence[bool],
        texts: Sequence[str],
        group_size: int,
        version: int,
        pad_id: int = 0,
        own: Sequence[Sequence[bool]] | None = None,
    ) -> Rollouts:
        """Packs P prompts and R = P * G completions into right-padded rows.

        Args:
            prompt_ids: Token ids of the prompts.
            completions: Token ids of the completions, gaps included.
            logprobs: Log-probabilities of the completions' tokens; those of gaps are ignored.
            truncated: Whether `max_tokens` stopped the policy, one a completion.
            texts: Texts of the completions.
            group_size: Number of completions a prompt.
            version: Version of the weights that sampled.
            pad_id: Token id behind a row's last token.
            own: Whether the policy wrote each of a completion's tokens; null for all of them.
        """
        starts = [len(prompt_ids[r // group_size]) for r in range(len(completions))]
        width = max(start + len(c) for start, c in zip(starts, completions, strict=True))
        tokens = torch.full((len(completions), width), pad_id, dtype=torch.long)  # (R, T)
        mask = torch.zeros_like(tokens, dtype=torch.bool)  # (R, T)
        values = torch.zeros(tokens.shape, dtype=torch.float32)  # (R, T)
        for r, (start, completion) in enumerate(zip(starts, completions, strict=True)):
            end = start + len(completion)
            tokens[r, :end] = torch.tensor([*prompt_ids[r // group_size], *completion])
            mask[r, start:end] = True
            values[r, start:end] = torch.tensor(logprobs[r])
        wrote = mask if own is None else mask.masked_scatter(mask, torch.tensor([w for each in own for w in each]))
        values = values.masked_fill(~wrote, 0.0)
        versions = torch.full((len(completions),), version, dtype=torch.long)
        cut = torch.tensor(truncated, dtype=torch.bool)
        return cls(tokens, mask, values, cut, list(texts), group_size, versions, wrote)

    @classmethod
    def join(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Concatenates rollouts with equal group size, padded to the longest row."""
        widest = max(part.tokens.shape[1] for part in parts)

        def stacked(name: str) -> Tensor:
            columns: list[Tensor] = [getattr(part, name) for part in parts]
            return torch.cat([pad(c, (0, widest - c.shape[1])) if c.ndim > 1 else c for c in columns])

        texts = [text for part in parts for text in part.texts]
        return replace(parts[0], texts=texts, **{name: stacked(name) for name in parts[0]._tensors})

    def of_groups(self, groups: Sequence[int]) -> Rollouts:
        """Returns the rows of the groups at the given positions, in the given order."""
        first = torch.tensor(groups, dtype=torch.long)[:, None] * self.group_size
        rows = (first + torch.arange(self.group_size)).flatten()  # (R,)
        texts = [self.texts[row] for row in rows.tolist()]
        return replace(self, texts=texts, **{name: values[rows] for name, values in self._tensors.items()})

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The fields that have a row a completion, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def lengths(self) -> Int[Tensor, " R"]:
        """Returns the number of tokens of each row without padding: prompt and completion, gaps included."""
        columns = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * columns).amax(1)

    @property
    def starts(self) -> Int[Tensor, " R"]:
        """Returns the number of prompt tokens of each row."""
        return self.lengths - self.mask.sum(1)

    @property
    def completion_lengths(self) -> Int[Tensor, " R"]:
        """Returns the number of tokens of each row that the policy wrote."""
        return self.own.sum(1)


def _require_stretches(mask: Bool[Tensor, "R T"], lengths: Int[Tensor, " R"]) -> None:
    """Refuses completions whose tokens are not neighbours."""
    holed = lengths - mask.int().argmax(1) != mask.sum(1)  # (R,)
    if holed.any():
        raise InputError(
            f"row {int(holed.int().argmax())}: the completion (mask) has a hole; mark every token behind the prompt in mask, "
            "and those that the policy wrote in own"
        )


@dataclass(frozen=True)
class Outcomes:
    """Rewards of a step's prompts, and counts of their answers.

    A NaN reward means that the grader failed, not that the answer is wrong: such answers are not among the graded ones.
    """

    uids: list[str]  # P
    # Weighted sums of all rewards; NaN too where a prompt got fewer completions than others.
    rewards: Float[Tensor, "P G"]
    right: Float[Tensor, " P"]  # number of right answers by the first reward; a fraction where it gives one
    graded: Int[Tensor, " P"]  # number of answers that the first reward graded
    varied: Bool[Tensor, " P"]  # whether answers that are trained on differ in the first reward
    tokens: Int[Tensor, " P"]  # number of tokens that the policy wrote

    @classmethod
    def join(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Concatenates the outcomes of several processes, as wide as the largest group; NaN where another has fewer."""
        uids = [uid for part in parts for uid in part.uids]
        widest = max(part.rewards.shape[1] for part in parts)
        rewards = [pad(part.rewards, (0, widest - part.rewards.shape[1]), value=torch.nan) for part in parts]
        columns = [each.name for each in fields(cls) if each.name not in ("uids", "rewards")]
        return cls(uids, torch.cat(rewards), *(torch.cat([getattr(part, name) for part in parts]) for name in columns))

    @property
    def pass_rate(self) -> Float[Tensor, " P"]:
        """Returns the share of right answers among the graded ones; NaN if none is graded."""
        return self.right / self.graded

    def __repr__(self) -> str:
        """Returns one line, because a notebook shows it."""
        return f"<Outcomes: {len(self.uids)} prompts, mean pass rate {float(self.pass_rate.nanmean()):.3g}>"
