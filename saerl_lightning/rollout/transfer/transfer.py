"""WeightTransfer: how the policy's weights get to vLLM servers, and the order of a sync, which all transfers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from saerl_lightning.rollout.serving.connection import VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet


class WeightTransfer(ABC):
    """Sends weights to all living servers of a fleet, from the training process that commands them (rank 0)."""

    sends_adapters = False  # whether `send_adapters` is there

    def server_flags(self) -> tuple[str, ...]:
        """Flags of vLLM that servers need for it; none by default."""
        return ()

    def check(self, fleet: Fleet, settings: dict[VLLMServer, dict[str, Any]]) -> None:
        """Refuses servers that it can't send to, before anything is sampled; nothing by default.

        Args:
            fleet: Servers that get the weights.
            settings: Settings of vLLM in each server.

        Raises:
            InputError: saying what to write instead.
        """

    @abstractmethod
    def send(self, named_tensors: Iterable[tuple[str, Tensor]], fleet: Fleet) -> None:
        """Gives the weights to all living servers, which are paused; a server that does not take them is given up.

        Args:
            named_tensors: Names and tensors of the full state dict, the tied output head among them.
            fleet: Servers that get the weights.
        """

    def send_adapters(self, folder: Path, name: str, fleet: Fleet) -> None:
        """Gives LoRA adapters to all living servers, which are paused, in place of the former ones.

        Args:
            folder: Folder in peft's format; it may be deleted afterwards.
            name: Name of the adapters, which no server has heard before.
            fleet: Servers that get the adapters.
        """
        raise NotImplementedError(f"{type(self).__name__} sends whole weights only")

    def close(self) -> None:
        """Frees what `send` claimed; nothing by default. May be called twice."""


def synchronise(send: Callable[[], None], fleet: Fleet, version: str) -> None:
    """Pauses the servers, sends the weights, clears cached prefixes, sets the version, and lets the servers go on.

    A server that fails at any of it is given up: after a failed load vLLM answers as if nothing had happened, and dies
    at the next request.

    Args:
        send: Function that sends weights or adapters to the servers.
        fleet: Servers that get them.
        version: Weight version that answers must have from now on.
    """
    fleet.each("/pause?mode=wait")
    send()
    for server, answer in fleet.each("/reset_prefix_cache").items():
        if not (isinstance(answer, dict) and answer.get("success") is True):
            fleet.give_up(
                server, f"did not clear its cached prefixes, which are of old weights (it said {answer!r:.60})"
            )
    fleet.each("/update_weight_version", {"new_version": version})
    for server, answer in fleet.each("/weight_info", method="GET").items():
        found = answer.get("weight_version") if isinstance(answer, dict) else answer
        if found != version:
            fleet.give_up(server, f"has the weight version {found!r:.80} after a sync, and was given another")
    fleet.each("/resume")
