"""Log-probabilities of completion tokens: pure functions of a model and right-padded rows.

The output head, the widest matrix of a small model, is applied to the positions that predict completion tokens and to
no other: prompts and padding cost no logits. There is no attention mask: rows are padded on the right, and under causal
attention no real token sees what follows it. Sampling is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1024  # positions a head call; its temporaries are (CHUNK, V)
CPU_TILE = 16  # positions whose entropy is taken together on a CPU: they fit its cache, which makes it 2.5 times faster
# Models with one of these in their configuration change the logits after the head, each in its own way.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def token_logprobs(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The log-probability of each target and the entropy of its distribution, both in nats and float32.

    Args:
        logits: finite unnormalised log-probabilities, any floating dtype.
        targets: token ids.
        temperature: softmax temperature; 0 (greedy sampling) is scored at temperature 1.
        entropy_gradient: whether the entropies carry a gradient too.

    Returns:
        Log-probabilities with gradient, and entropies.
    """
    scaled = logits.float() if temperature in (0.0, 1.0) else logits.float() / temperature
    # Not log_softmax, which on a CPU is up to 5e-5 nats off over 152,000 tokens: half of what the guard allows.
    logp = scaled - scaled.logsumexp(-1, keepdim=True)  # (N, V)
    entropy = -(logp.exp() * logp).sum(-1) if entropy_gradient else _entropy(logp.detach())
    return logp.gather(-1, targets[:, None]).squeeze(-1), entropy


def _entropy(logp: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    tiles = logp.split(CPU_TILE if logp.device.type == "cpu" else CHUNK)
    return torch.cat([-(tile.exp().mul_(tile)).sum(-1) for tile in tiles])


def completion_positions(mask: Bool[Tensor, "R T"]) -> Int[Tensor, " N"]:
    """Indices into the flattened (R, T) rows of all completion tokens, row by row.

    The token at index i is predicted by the hidden state at i - 1: a completion follows at least one prompt token.
    """
    return mask.flatten().nonzero().squeeze(1)


def score(
    model: PreTrainedModel,
    tokens: Int[Tensor, "R T"],
    mask: Bool[Tensor, "R T"],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Log-probabilities and entropies of the completion tokens under `model`, zero elsewhere: the plain, padded way.

    Args:
        model: a causal language model, LoRA-wrapped or not.
        tokens: rows of [prompt | completion | padding].
        mask: which tokens are completion tokens.
        temperature: softmax temperature the rows were sampled at; 0 is scored as 1.
        entropy_gradient: whether the entropies carry a gradient too.

    Returns:
        Log-probabilities with gradient and entropies, both float32.
    """
    positions = completion_positions(mask)  # (N,)
    targets = tokens.flatten()[positions]  # (N,)
    if transforms_logits(model):
        logits = _model_logits(model, tokens, positions)
    else:
        logits = head_logits(model, predicting_states(model, tokens, positions))
    logprobs, entropy = chunked_logprobs(logits, targets, temperature, entropy_gradient)
    return spread(logprobs, positions, tokens.shape), spread(entropy, positions, tokens.shape)


def chunked_logprobs(
    logits: Iterator[Float[Tensor, "n V"]], targets: Int[Tensor, " N"], temperature: float, entropy_gradient: bool
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """`token_logprobs` of logits that come `CHUNK` positions at a time."""
    chunks = [
        token_logprobs(z, t, temperature, entropy_gradient) for z, t in zip(logits, targets.split(CHUNK), strict=True)
    ]
    logprobs, entropy = (torch.cat(values) for values in zip(*chunks, strict=True))
    return logprobs, entropy


def transforms_logits(model: PreTrainedModel) -> bool:
    """Whether the model does something to the logits after its head."""
    settings = model.config.get_text_config()
    return any(getattr(settings, name, None) is not None for name in LOGIT_TRANSFORMS)


def predicting_states(
    model: PreTrainedModel, tokens: Int[Tensor, "R T"], positions: Int[Tensor, " N"]
) -> Float[Tensor, "N d"]:
    """The decoder's last hidden states from which the completion tokens at `positions` are predicted."""
    rows, columns = positions // tokens.shape[1], positions % tokens.shape[1]  # (N,)
    # What stands in the last column is predicted, but predicts nothing; padding of the whole batch is left out too.
    width = int(columns.max()) if len(columns) else 1
    hidden = model.get_decoder()(input_ids=tokens[:, :width], use_cache=False).last_hidden_state  # (R, width, d)
    return hidden.flatten(0, 1).index_select(0, rows * width + columns - 1)


def output_head(model: PreTrainedModel) -> torch.nn.Module:
    """The layer from hidden states to logits."""
    head = model.get_output_embeddings()
    assert head is not None, f"{type(model).__name__} has no output head: it is no language model"
    return head


def head_logits(model: PreTrainedModel, predicting: Float[Tensor, "N d"]) -> Iterator[Float[Tensor, "n V"]]:
    """Logits of the given hidden states, a chunk at a time: the head sees no other."""
    head = output_head(model)
    for chunk in predicting.split(CHUNK):
        yield head(chunk)


def _model_logits(
    model: PreTrainedModel, tokens: Int[Tensor, "R T"], positions: Int[Tensor, " N"]
) -> Iterator[Float[Tensor, "n V"]]:
    """The same from the model's own forward, over all columns in which any row has a completion token."""
    rows, columns = positions // tokens.shape[1], positions % tokens.shape[1]  # (N,)
    kept = (columns - 1).unique()  # (K,)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits  # (R, K, V)
    places = rows * len(kept) + torch.searchsorted(kept, columns - 1)  # (N,)
    yield from logits.flatten(0, 1).index_select(0, places).split(CHUNK)


def spread(values: Float[Tensor, " N"], positions: Int[Tensor, " N"], shape: torch.Size) -> Float[Tensor, "R T"]:
    """Puts the values at their positions, zero elsewhere."""
    return values.new_zeros(shape.numel()).index_copy(0, positions, values).view(shape)


def mismatch(
    policy: Float[Tensor, "R T"], sampler: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and largest absolute difference of two sets of log-probabilities over completion tokens, in nats."""
    difference = (policy.detach() - sampler).abs()[mask]
    return difference.mean(), difference.max()
