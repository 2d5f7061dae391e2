"""Computes hidden states with each prompt processed once, however many completions it has.

A group becomes one stretch [prompt | c1 | ... | cG] of a single packed row, without padding. The results equal those of
padded rows up to rounding, gradients included. Some models' attention does not allow packing: `why_not_packed` gives
the reason, and their rows stay padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saerl_lightning.hf_attention import relative_distance, why_not_replaced
from saerl_lightning.policy.modes import in_mode
from saerl_lightning.policy.prefix_attention import PackedGroup, PackedLayout, attends_packed
from saerl_lightning.policy.weights import with_whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two prompts: the completions of the first differ in length, those of the second don't. A small case of each code path.
CHECK_TOKENS = (
    (3, 4, 5, 6, 7, 8, 9, 10, 11),
    (3, 4, 5, 6, 7, 12, 0, 0, 0),
    (3, 4, 5, 6, 7, 13, 14, 0, 0),
    (5, 3, 9, 4, 6, 0, 0, 0, 0),
    (5, 3, 9, 15, 3, 0, 0, 0, 0),
)
CHECK_PROMPTS, CHECK_STARTS, CHECK_ENDS = (0, 0, 0, 1, 1), (5, 5, 5, 3, 3), (9, 6, 7, 5, 5)


@dataclass(frozen=True)
class PackedGroups:
    """Groups packed one after the other into a single row of n tokens."""

    tokens: Int[Tensor, "1 n"]
    positions: Int[Tensor, "1 n"]  # a completion's positions continue those of its prompt
    groups: tuple[PackedGroup, ...]
    predicting: Int[Tensor, " N"]  # index in n of the state that predicts each token of the policy, row by row


def pack_groups(
    tokens: Int[Tensor, "r t"],
    mask: Bool[Tensor, "r t"],
    prompts: Int[Tensor, " r"],
    own: Bool[Tensor, "r t"] | None = None,
) -> PackedGroups:
    """Packs rows into groups that share their prompt.

    Args:
        tokens: Rows of [prompt | completion | padding].
        mask: True at completion tokens, gaps included; each row has at least one, and they are neighbours.
        prompts: Index of each row's prompt; rows of one prompt are neighbours and begin with the same tokens.
        own: True at the completion tokens that are predicted; null predicts all of them.

    Returns:
        The packed row, on the device of `tokens`.
    """
    ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)  # (r,)
    columns = torch.stack([prompts, mask.int().argmax(1), mask.sum(1), ends]).T.tolist()
    groups, taken, positions, predicting, place = [], [], [], [], 0
    for _, rows in groupby(enumerate(columns), key=lambda row: row[1][0]):
        # The prompt is taken from the group's first row, and completions follow it in the order of the rows.
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
    if own is not None:
        predicts = predicts[own[mask]]  # both are in the order of the completions' tokens
    return PackedGroups(tokens.flatten()[picked][None], numbered[None], tuple(groups), predicts)


def _same_prompt(rows: list[tuple[int, list[int]]]) -> tuple[int, int, tuple[int, ...]]:
    """Returns the index of a group's first row, the length of its prompt, and the length of each completion."""
    starts, lengths = {start for _, (_, start, _, _) in rows}, tuple(length for _, (_, _, length, _) in rows)
    assert len(starts) == 1 and min(starts) > 0, f"rows of one prompt have completions that start at {sorted(starts)}"
    assert min(lengths) > 0, "a row has no completion token"
    holed = [row for row, (_, start, length, end) in rows if start + length != end]
    assert not holed, f"the completions of rows {holed} have holes: mark gaps in `own`, not in `mask`"
    return rows[0][0], starts.pop(), lengths


def predicting_states(model: PreTrainedModel, packed: PackedGroups) -> Float[Tensor, "N d"]:
    """Computes the final hidden states that predict the completion tokens, with gradient.

    Args:
        model: Causal language model for which `why_not_packed` gives None, with or without LoRA adapters.
        packed: Result of `pack_groups`, on the model's device.

    Returns:
        Inputs of the output head, in the order of `packed.predicting`.

    Raises:
        NotImplementedError: if the model's attention is not a plain causal softmax.
    """
    return _packed_states(model, packed).index_select(0, packed.predicting)


def _packed_states(model: PreTrainedModel, packed: PackedGroups) -> Float[Tensor, "n d"]:
    decoder, layout = model.get_decoder(), PackedLayout(packed.groups, packed.tokens.device)
    with attends_packed(decoder):
        out = decoder(input_ids=packed.tokens, position_ids=packed.positions, use_cache=False, packed_layout=layout)
    return out.last_hidden_state[0]


def why_not_packed(model: PreTrainedModel, max_tokens: int) -> str | None:
    """Returns the reason why this model can't use packed groups; None if it can.

    Attention windows are read from the configuration, because a few tokens do not reach them. Everything else (dropout
    in the attention, soft caps, sinks, recurrent layers, position biases) is found by running a few tokens both ways.
    Weights and random state stay as they are.

    Args:
        model: Causal language model, with or without LoRA adapters.
        max_tokens: Largest number of tokens of a prompt plus completion.
    """
    return why_not_replaced(
        model.get_decoder(), max_tokens, "packed groups", lambda: with_whole_weights(model, _packing_error, model)
    )


@torch.no_grad()
def _packing_error(model: PreTrainedModel) -> float:
    """The largest distance of a packed from a padded state, as a share of its norm."""
    decoder = model.get_decoder()
    tokens, prompts, starts, ends = (
        torch.tensor(values, device=decoder.device)
        for values in (CHECK_TOKENS, CHECK_PROMPTS, CHECK_STARTS, CHECK_ENDS)
    )
    columns = torch.arange(tokens.shape[1], device=decoder.device)
    mask = (columns >= starts[:, None]) & (columns < ends[:, None])
    packed = pack_groups(tokens, mask, prompts)
    # Models pass a dropout rate to their attention in training mode only; `packed_attention` then raises.
    with in_mode(model, training=True):
        predicting_states(model, packed)
    with in_mode(model, training=False):
        ours = predicting_states(model, packed)
        padded = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    return relative_distance(ours, padded[:, :-1][mask[:, 1:]])
