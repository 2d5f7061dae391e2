"""Saves and restores the global random states, which Lightning's checkpoints leave out."""

from __future__ import annotations

import random
from typing import Any

import lightning
import numpy as np
import torch


class RandomStates(lightning.Callback):
    """Saves the states of the generators of Python, NumPy and torch in the checkpoint, on every rank.

    Samplers don't need this, because their seeds depend on the step; dropout and users' own code do.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stores the states: a run that is stopped in a validation repeats that validation."""
        self._before_validation = random_states()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Deletes the stored states."""
        self._before_validation = None

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds one entry a rank under `random_states`."""
        own = self._before_validation or random_states()
        states = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the states until training starts, because code before it may draw random numbers too."""
        self._restored = checkpoint.get("random_states")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restores this rank's generators, if the checkpoint has its states."""
        if self._restored is not None and trainer.global_rank < len(self._restored):
            restore_random_states(self._restored[trainer.global_rank])
        self._restored = None


def random_states() -> dict[str, Any]:
    """Collects the states as plain numbers and tensors, which load with `weights_only`."""
    version, keys, gauss = random.getstate()
    name, np_keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # the global one is what counts
    return {
        "python": [version, list(keys), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(np_keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets the global generators to `states`."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, np_keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np_keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
