"""Computes log-probabilities of completion tokens: pure functions of a model and right-padded rows.

The output head is the largest matrix of a small model. It is applied only to the positions that predict completion
tokens, so prompts and padding cost no logits. There is no attention mask: rows are padded on the right, and with causal
attention no real token attends to the padding behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions in one call of the head; its temporaries are (CHUNK, V).
CHUNK = 1024
# Positions whose entropy is computed together on a CPU. They fit its cache, which makes this 2.5 times faster.
CPU_TILE = 16
# Models with one of these settings change the logits after the head.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def token_logprobs(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Computes the log-probability of each target and the entropy of its distribution, in nats and float32.

    Args:
        logits: Finite unnormalised log-probabilities in any floating dtype.
        targets: Token ids whose log-probabilities are computed.
        temperature: Softmax temperature; 0 (greedy sampling) is scored at temperature 1.
        entropy_gradient: Whether the entropies carry a gradient too.

    Returns:
        Log-probabilities with gradient, and entropies.
    """
    scaled = logits.float() if temperature in (0.0, 1.0) else logits.float() / temperature
    # log_softmax has errors of up to 5e-5 nats on a CPU with 152,000 tokens: half of the guard's tolerance.
    logp = scaled - scaled.logsumexp(-1, keepdim=True)  # (N, V)
    entropy = -(logp.exp() * logp).sum(-1) if entropy_gradient else _entropy(logp.detach())
    return logp.gather(-1, targets[:, None]).squeeze(-1), entropy


def _entropy(logp: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    tiles = logp.split(CPU_TILE if logp.device.type == "cpu" else CHUNK)
    return torch.cat([-(tile.exp().mul_(tile)).sum(-1) for tile in tiles])


def completion_positions(mask: Bool[Tensor, "R T"]) -> Int[Tensor, " N"]:
    """Finds the indices of all completion tokens in the flattened (R, T) rows, row by row.

    The hidden state at index i - 1 predicts the token at index i: every completion follows at least one prompt token.
    """
    return mask.flatten().nonzero().squeeze(1)


def score(
    model: PreTrainedModel,
    tokens: Int[Tensor, "R T"],
    mask: Bool[Tensor, "R T"],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Computes log-probabilities and entropies of the completion tokens from padded rows; all other entries are zero.

    Args:
        model: Causal language model, with or without LoRA adapters.
        tokens: Rows of [prompt | completion | padding].
        mask: True at the completion tokens that are scored; the model sees the others too.
        temperature: Softmax temperature that the rows were sampled at; 0 is scored as 1.
        entropy_gradient: Whether the entropies carry a gradient too.

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
    """Applies `token_logprobs` to logits that come in chunks of `CHUNK` positions."""
    chunks = [
        token_logprobs(z, t, temperature, entropy_gradient) for z, t in zip(logits, targets.split(CHUNK), strict=True)
    ]
    logprobs, entropy = (torch.cat(values) for values in zip(*chunks, strict=True))
    return logprobs, entropy


def transforms_logits(model: PreTrainedModel) -> bool:
    """Whether the model changes the logits after its output head, for example by a soft cap."""
    settings = model.config.get_text_config()
    return any(getattr(settings, name, None) is not None for name in LOGIT_TRANSFORMS)


def predicting_states(
    model: PreTrainedModel, tokens: Int[Tensor, "R T"], positions: Int[Tensor, " N"]
) -> Float[Tensor, "N d"]:
    """Computes the decoder's last hidden states that predict the completion tokens at `positions`."""
    rows, columns = positions // tokens.shape[1], positions % tokens.shape[1]  # (N,)
    # The last completion token is predicted but predicts nothing, so the columns from there on are cut off.
    width = int(columns.max()) if len(columns) else 1
    hidden = model.get_decoder()(input_ids=tokens[:, :width], use_cache=False).last_hidden_state  # (R, width, d)
    return hidden.flatten(0, 1).index_select(0, rows * width + columns - 1)


def output_head(model: PreTrainedModel) -> torch.nn.Module:
    """The layer that maps hidden states to logits."""
    head = model.get_output_embeddings()
    assert head is not None, f"{type(model).__name__} has no output head: it is no language model"
    return head


def head_logits(model: PreTrainedModel, predicting: Float[Tensor, "N d"]) -> Iterator[Float[Tensor, "n V"]]:
    """Yields the logits of the given hidden states in chunks of `CHUNK` positions."""
    head = output_head(model)
    for chunk in predicting.split(CHUNK):
        yield head(chunk)


def _model_logits(
    model: PreTrainedModel, tokens: Int[Tensor, "R T"], positions: Int[Tensor, " N"]
) -> Iterator[Float[Tensor, "n V"]]:
    """Yields the same logits from the model's own forward, for models that change logits after the head."""
    rows, columns = positions // tokens.shape[1], positions % tokens.shape[1]  # (N,)
    kept = (columns - 1).unique()  # (K,)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits  # (R, K, V)
    places = rows * len(kept) + torch.searchsorted(kept, columns - 1)  # (N,)
    yield from logits.flatten(0, 1).index_select(0, places).split(CHUNK)


def spread(values: Float[Tensor, " N"], positions: Int[Tensor, " N"], shape: torch.Size) -> Float[Tensor, "R T"]:
    """Puts the values at their positions in an array of zeros."""
    return values.new_zeros(shape.numel()).index_copy(0, positions, values).view(shape)


def mismatch(
    policy: Float[Tensor, "R T"], sampler: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and largest absolute difference of two sets of log-probabilities over the completion tokens, in nats."""
    difference = (policy.detach() - sampler).abs()[mask]
    return difference.mean(), difference.max()
