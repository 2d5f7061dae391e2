"""Records that several folders exchange: prompts, batches, rollouts, outcomes.

Shapes stand beside each field; nothing here computes more than its own layout.

P prompts a step, G completions a prompt, R = P * G rows, T tokens of the longest row.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, PositiveShare, Range, require_in_range

Temperature = Annotated[float, Range(0, 100)]
SamplerSeed = Annotated[int, Range(0, 2**62)]  # wide: a run derives one a step from the one that was given
COLDEST = 0.01  # lowest temperature that is not greedy

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Prompt:
    """One task for the policy.

    Args:
        uid: name of the prompt, unique in its pool.
        messages: the chat, each message with `role` and `content`.
        answer: the gold answer, as text.
        source: where the prompt came from (a data set, a task).
        topic: subject, where known.
        labels: numbers known about the prompt: `difficulty`, `level`, `quality`.
        grading: what a grader needs beyond the answer, as JSON ("" for none).
        copied_from: uid of the prompt that this one is a copy of ("" for none).
    """

    uid: str
    messages: tuple[Message, ...]
    answer: str
    source: str = ""
    topic: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    grading: str = ""
    copied_from: str = ""

    @property
    def text(self) -> str:
        """The user's words: contents of all messages but the system's, joined by blank lines."""
        return "\n\n".join(m["content"] for m in self.messages if m["role"] != "system")

    @property
    def normalised_text(self) -> str:
        """`text` without differences of case, spacing or Unicode form: equal texts are the same question."""
        return " ".join(unicodedata.normalize("NFKC", self.text).casefold().split())


class PromptBatch:
    """P prompts with their token ids and the pool rows they came from.

    A plain class, because Lightning's precision plugins (half, double, FSDP, DeepSpeed) walk into a dataclass, rebuild
    every token list and refuse the frozen `Prompt`s; a plain object passes through untouched.
    """

    def __init__(self, prompts: list[Prompt], ids: list[list[int]], rows: list[int]) -> None:
        self.prompts = prompts  # P
        self.ids = ids  # P lists of token ids, chat template applied
        self.rows = rows  # P, positions in the pool


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        group_size: completions a prompt (G).
        temperature: softmax temperature; 0 is greedy.
        top_p: nucleus mass kept, in (0, 1]; 1 keeps all.
        top_k: most likely tokens kept; 0 keeps all.
        max_tokens: longest completion, in tokens.
        seed: of the sampler; the trainer derives one a step from it.
        stop: texts that end a completion.
    """

    group_size: Count = 8
    temperature: Temperature = 1.0
    top_p: PositiveShare = 1.0
    top_k: CountFrom0 = 0
    max_tokens: Count = 256
    seed: SamplerSeed = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values that no sampler has a meaning for."""
        require_in_range(self)
        if 0 < self.temperature < COLDEST:
            raise InputError(
                f"Sampling.temperature is {self.temperature}; write 0 (greedy), or {COLDEST} or more: logits over less "
                "than that overflow, and vLLM raises it unasked"
            )

    @property
    def full_support(self) -> bool:
        """Whether every token can be drawn, so that the sampler's log-probabilities are the policy's own."""
        return self.top_p == 1.0 and self.top_k == 0 and self.temperature > 0


@dataclass(frozen=True)
class Rollouts:
    """R sampled rows, each [prompt | completion | padding].

    Rows of one prompt are neighbours: row p * G + g is completion g of prompt p. `logprobs` are those of the
    distribution that was sampled from (at the sampling temperature), zero outside `mask`.
    """

    tokens: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]  # completion tokens, the end-of-text token included
    logprobs: Float[Tensor, "R T"]
    truncated: Bool[Tensor, " R"]  # stopped by max_tokens, not by an end-of-text token or a stop text
    texts: list[str]  # R
    group_size: int  # G
    weight_version: Int[Tensor, " R"]  # version of the weights that wrote the row

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
    ) -> Rollouts:
        """Lays out P prompts and R = P * G completions as right-padded rows."""
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
        versions = torch.full((len(completions),), version, dtype=torch.long)
        return cls(tokens, mask, values, torch.tensor(truncated, dtype=torch.bool), list(texts), group_size, versions)

    @classmethod
    def join(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Puts groups of equal size under one another, padded to the widest."""
        widest = max(part.tokens.shape[1] for part in parts)

        def stacked(name: str) -> Tensor:
            columns: list[Tensor] = [getattr(part, name) for part in parts]
            return torch.cat([pad(column, (0, widest - column.shape[1])) for column in columns])

        return cls(
            stacked("tokens"),
            stacked("mask"),
            stacked("logprobs"),
            torch.cat([part.truncated for part in parts]),
            [text for part in parts for text in part.texts],
            parts[0].group_size,
            torch.cat([part.weight_version for part in parts]),
        )

    def of_groups(self, groups: Sequence[int]) -> Rollouts:
        """The rows of some groups, given by their position, in that order."""
        first = torch.tensor(groups, dtype=torch.long)[:, None] * self.group_size
        rows = (first + torch.arange(self.group_size)).flatten()  # (R,)
        texts = [self.texts[row] for row in rows.tolist()]
        return Rollouts(
            self.tokens[rows],
            self.mask[rows],
            self.logprobs[rows],
            self.truncated[rows],
            texts,
            self.group_size,
            self.weight_version[rows],
        )

    @property
    def lengths(self) -> Int[Tensor, " R"]:
        """Tokens of each row without padding: prompt and completion."""
        columns = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * columns).amax(1)

    @property
    def completion_lengths(self) -> Int[Tensor, " R"]:
        """Completion tokens of each row."""
        return self.mask.sum(1)


@dataclass(frozen=True)
class Outcomes:
    """What a step learned about its prompts.

    A NaN reward says that the grader failed, which is not 'wrong'; such rows are left out of `pass_rate`.
    """

    uids: list[str]  # P
    rewards: Float[Tensor, "P G"]
    pass_rate: Float[Tensor, " P"]
