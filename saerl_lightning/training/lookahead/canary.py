"""The canary: a few short completions by the sampler's present weights, for the guard."""

from __future__ import annotations

from dataclasses import replace

import torch

from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.rows import StepRows

TOKENS = 8  # of a completion: a group of 8 gives the guard's mean over 64 tokens


def canary(engine: RolloutEngine, batch: PromptBatch, sampling: Sampling, seed: int, device: torch.device) -> StepRows:
    """Samples one group of short completions for the batch's first prompt.

    The batch itself was sampled by older weights, so the guard can't compare it with the policy. Its prompt's prefix is
    what a sampler that did not clear its cache would still hold.

    Args:
        engine: Engine that just got the policy's weights.
        batch: Batch that is trained.
        sampling: Sampling settings of the run.
        seed: Seed of the sampler.
        device: Device of the rows.
    """
    short = replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens))
    rollouts = engine.generate(batch.ids[:1], short.placed(batch.places[:1], seed))
    all_of_them = torch.ones(len(rollouts.texts), dtype=torch.bool)
    return StepRows.from_rollouts(rollouts, all_of_them, short.max_tokens, device)
