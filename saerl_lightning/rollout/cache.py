"""Key-value cache with room for the whole completion, so that a decoding step writes one column and copies nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in buffers of fixed capacity; `keys` and `values` are views of the filled part.

    Args:
        capacity: most positions the layer will hold: prompt plus completion.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None  # 2 x (rows, heads, capacity, width)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new columns behind the filled ones.

        The first call, the prefill, keeps the tensors as they are: `reorder_cache` gives them room when each
        prompt becomes a group.
        """
        if self.keys is None or self.values is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return self.keys, self.values
        if self.buffers is None:
            self.reorder_cache(torch.arange(len(self.keys), device=self.keys.device))
        assert self.buffers is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i a copy of the present row `beam_idx[i]`; rows may repeat or be left out."""
        assert self.keys is not None and self.values is not None
        filled = self.keys.shape[2]
        self.buffers = self._roomy_copy(self.keys, beam_idx), self._roomy_copy(self.values, beam_idx)
        self.keys, self.values = (buffer[:, :, :filled] for buffer in self.buffers)

    def _roomy_copy(self, filled: Tensor, rows: Tensor) -> Tensor:
        """A buffer of full capacity whose first columns are those of the given rows."""
        buffer = filled.new_empty(len(rows), filled.shape[1], self.capacity, filled.shape[3])
        buffer[:, :, : filled.shape[2]] = filled[rows]
        return buffer


def make_cache(config: PretrainedConfig, capacity: int) -> DynamicCache:
    """The cache transformers gives this model, with room for `capacity` positions where a layer keeps them all.

    Layers of other kinds (sliding window, linear attention) stay what they are; all of them reorder rows alike.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
