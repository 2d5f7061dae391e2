"""The loop over prompts: batches that share prefixes, forward, pooled on the fly, part by part.

It knows no SAE: what is made of the residual stream is a function it is given. Tokens without end are never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.forward import Forward, Reading, suited_forward
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.source import Features
from saerl_lightning.signals.tokens import encode
from saerl_lightning.signals.trie import Tokens

Part = tuple[Int[np.ndarray, " n"], Features]  # positions of prompts, and their rows


def read_prompts(
    model: ReadModel,
    prompts: Sequence[Prompt],
    pool: Callable[[Reading], Features],
    token_budget: int,
    max_tokens: int,
) -> Iterator[Part]:
    """Loads a model and yields pooled rows of all prompts, batch by batch.

    Args:
        model: what reads.
        prompts: N prompts.
        pool: rows of the prompts of one batch, from the residual stream of their tokens.
        token_budget: distinct tokens of a batch.
        max_tokens: longest prompt; longer ones are cut.

    Raises:
        InputError: if a row has NaN or infinite entries; the message names the prompt.
    """
    decoder, tokenizer = model.load()
    ids = encode(prompts, tokenizer, max_tokens)
    forward = suited_forward(decoder, max_tokens)
    for positions, rows in pooled_parts(forward, ids, pool, token_budget):
        if not is_finite(rows):
            # Batched prompts spread NaN to each other (0 * NaN under the mask), so each is read again alone.
            bad = [prompts[i].uid for i in positions if not is_finite(pool(forward([ids[i]])))]
            raise InputError(
                f"the features of prompt {bad[0]!r} are NaN or infinite ({len(bad)} of the {len(positions)} prompts in its "
                f"batch); read with `dtype: float32`, check the weights of model and SAE, or take the prompt out"
            )
        yield positions, rows


def pooled_parts(
    forward: Forward, ids: Sequence[Tokens], pool: Callable[[Reading], Features], token_budget: int
) -> Iterator[Part]:
    """Yields pooled rows of token lists, batch by batch, with a progress bar that counts tokens (on rank 0)."""
    from tqdm import tqdm

    total = sum(map(len, ids))
    with tqdm(total=total, unit="token", desc="signals", disable=None if _rank() == 0 else True) as bar:
        for batch in forward.batches(ids, token_budget):
            tokens = [ids[i] for i in batch]
            yield np.array(batch, dtype=np.int64), pool(forward(tokens))
            bar.update(sum(map(len, tokens)))


def is_finite(rows: Features) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(np.isfinite(rows if isinstance(rows, np.ndarray) else rows.data).all())


def _rank() -> int:
    return (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )
