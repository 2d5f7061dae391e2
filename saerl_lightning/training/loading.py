"""Loads the policy for a trainer: whole in each process, or sharded over all of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import lightning
import torch

from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.shard_loading import load_sharded
from saerl_lightning.policy.sharding import shard
from saerl_lightning.ranks.collectives import agreed
from saerl_lightning.ranks.sharded import ShardedStrategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_for(policy: Policy, trainer: lightning.Trainer | None) -> PreTrainedModel:
    """Loads a policy, sharded under a strategy that shards. All processes call it.

    Args:
        policy: Policy to load.
        trainer: Trainer with its strategy; null for commands without one, such as `label`.

    Raises:
        InputError: on every process, if one of them can't load it.
    """
    strategy = None if trainer is None else trainer.strategy
    if trainer is None or not isinstance(strategy, ShardedStrategy):
        with agreed():  # the folder may be missing on one machine
            return policy.load_model()
    compute = torch.bfloat16 if trainer.precision == "bf16-mixed" else None
    over = partial(shard, mesh=strategy.device_mesh["data_parallel"], compute=compute)
    with agreed():
        if (model := load_sharded(policy, over, strategy.root_device)) is not None:
            return model
        model = policy.load_model()
    over(model)
    return model
