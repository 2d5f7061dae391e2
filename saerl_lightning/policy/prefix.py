"""The forward that computes every prompt once, however many completions it has.

A group becomes one stretch [prompt | c1 | ... | cG] of a single packed row; no padding, no prompt twice. The results are
those of padded rows up to rounding, gradients included. What is done with the hidden states (the head, the loss) is not
decided here; for models whose attention does not allow it, `why_not_packed` says so and rows stay padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.hf_attention import TOLERANCE, attention_window
from saerl_lightning.policy.modes import in_mode
from saerl_lightning.policy.prefix_attention import PackedGroup, PackedLayout, attends_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two prompts, one with ragged and one with equal completions.
TRIAL_TOKENS = (
    (3, 4, 5, 6, 7, 8, 9, 10, 11),
    (3, 4, 5, 6, 7, 12, 0, 0, 0),
    (3, 4, 5, 6, 7, 13, 14, 0, 0),
    (5, 3, 9, 4, 6, 0, 0, 0, 0),
    (5, 3, 9, 15, 3, 0, 0, 0, 0),
)
TRIAL_PROMPTS, TRIAL_STARTS, TRIAL_ENDS = (0, 0, 0, 1, 1), (5, 5, 5, 3, 3), (9, 6, 7, 5, 5)


@dataclass(frozen=True)
class PackedGroups:
    """Groups packed behind one another into a single row of n tokens."""

    tokens: Int[Tensor, "1 n"]
    positions: Int[Tensor, "1 n"]  # each completion goes on where its prompt ends
    groups: tuple[PackedGroup, ...]
    predicting: Int[Tensor, " N"]  # place in n that predicts each completion token, row by row


def pack_groups(tokens: Int[Tensor, "r t"], mask: Bool[Tensor, "r t"], prompts: Int[Tensor, " r"]) -> PackedGroups:
    """Packs rows into groups that share their prompt.

    Args:
        tokens: rows of [prompt | completion | padding].
        mask: completion tokens; one or more a row, without gaps.
        prompts: the prompt each row belongs to; rows of one prompt are neighbours and begin with the same tokens.

    Returns:
        The packed row, on the device of `tokens`.
    """
    columns = torch.stack([prompts, mask.int().argmax(1), mask.sum(1)]).T.tolist()
    groups, taken, positions, predicting, place = [], [], [], [], 0
    for _, rows in groupby(enumerate(columns), key=lambda row: row[1][0]):
        first, prompt, lengths = _same_prompt(list(rows))
        groups.append(PackedGroup(place, prompt, lengths))
        taken.append(first * tokens.shape[1] + torch.arange(prompt))
        positions.append(torch.arange(prompt))
        last, place = place + prompt - 1, place + prompt
        for row, length in enumerate(lengths, start=first):
            taken.append(row * tokens.shape[1] + torch.arange(prompt, prompt + length))
            positions.append(torch.arange(prompt, prompt + length))
            predicting += [torch.tensor([last]), torch.arange(place, place + length - 1)]
            place += length
    picked, numbered, predicts = (torch.cat(parts).to(tokens.device) for parts in (taken, positions, predicting))
    return PackedGroups(tokens.flatten()[picked][None], numbered[None], tuple(groups), predicts)


def _same_prompt(rows: list[tuple[int, list[int]]]) -> tuple[int, int, tuple[int, ...]]:
    """Position of a group's first row, tokens of its prompt, tokens of each completion."""
    starts, lengths = {start for _, (_, start, _) in rows}, tuple(length for _, (_, _, length) in rows)
    assert len(starts) == 1 and min(starts) > 0, f"rows of one prompt have completions that start at {sorted(starts)}"
    assert min(lengths) > 0, "a row has no completion token"
    return rows[0][0], starts.pop(), lengths


def predicting_states(model: PreTrainedModel, packed: PackedGroups) -> Float[Tensor, "N d"]:
    """The final hidden states that predict the completion tokens, with gradient.

    Args:
        model: a causal language model, LoRA-wrapped or not, to which `why_not_packed` has no objection.
        packed: from `pack_groups`, on the model's device.

    Returns:
        States as the output head takes them, in the order of `packed.predicting`.

    Raises:
        NotImplementedError: if the model's attention is no plain softmax over all that came before.
    """
    return _packed_states(model, packed).index_select(0, packed.predicting)


def _packed_states(model: PreTrainedModel, packed: PackedGroups) -> Float[Tensor, "n d"]:
    decoder, layout = model.get_decoder(), PackedLayout(packed.groups, packed.tokens.device)
    with attends_packed(decoder):
        out = decoder(input_ids=packed.tokens, position_ids=packed.positions, use_cache=False, packed_layout=layout)
    return out.last_hidden_state[0]


def why_not_packed(model: PreTrainedModel, max_tokens: int) -> str | None:
    """Why the packed forward of this model would not be that of padded rows; None if it is.

    Windows are looked up, since a short trial can't show them; all else (dropout in the attention, soft caps, sinks,
    recurrent layers, position biases) shows itself in a trial with a few tokens. Weights and random state stay as they are.

    Args:
        model: a causal language model, LoRA-wrapped or not.
        max_tokens: longest prompt and completion together that will be packed.
    """
    decoder = model.get_decoder()
    name, window = type(decoder).__name__, attention_window(decoder)
    if window is not None and window < max_tokens:
        return f"{name} attends within windows of {window} tokens, sequences have up to {max_tokens}"
    try:
        apart = _trial(model)
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        return f"{name} takes no packed groups ({str(error).splitlines()[0]})"
    if not apart <= TOLERANCE[decoder.dtype]:
        return f"{name} differs with packed groups by {apart:.2g} of a state's norm"
    return None


@torch.no_grad()
def _trial(model: PreTrainedModel) -> float:
    """The largest distance of a packed from a padded state, as a share of its norm."""
    decoder = model.get_decoder()
    tokens, prompts, starts, ends = (
        torch.tensor(values, device=decoder.device)
        for values in (TRIAL_TOKENS, TRIAL_PROMPTS, TRIAL_STARTS, TRIAL_ENDS)
    )
    columns = torch.arange(tokens.shape[1], device=decoder.device)
    mask = (columns >= starts[:, None]) & (columns < ends[:, None])
    packed = pack_groups(tokens, mask, prompts)
    with in_mode(model, training=True):  # only then does a model ask for dropout
        predicting_states(model, packed)
    with in_mode(model, training=False):
        ours = predicting_states(model, packed).double()
        padded = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    theirs = padded[:, :-1][mask[:, 1:]].double()
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())
