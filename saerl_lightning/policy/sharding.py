"""Shards a policy over processes (FSDP2): each holds a part of every weight, and gathers a layer while it is used."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saerl_lightning.policy.weights import base_model

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Shards a causal language model over the processes of a mesh, layer by layer. All processes call it.

    The whole model is the root, because a tied output head and the embedding are one weight. Functions that call the
    decoder and the head by themselves must go through `weights.with_whole_weights`.

    Args:
        model: Model with or without adapters, whole on each process.
        mesh: Processes that share the weights.
        compute: Floating-point type that layers are gathered and computed in; null for that of the weights, which stay
            as they are for the optimiser. Gradients are summed in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:  # drawn by each process itself
                drawn = weight.to(mesh.device_type)
                torch.distributed.broadcast(drawn, 0)
                weight.copy_(drawn)
    policy = MixedPrecisionPolicy(compute, torch.float32 if compute else None, cast_forward_inputs=False)
    blocks = set(base_model(model)._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    object.__setattr__(model, "call_whole", MethodType(_call, model))
    register_fsdp_forward_method(model, "call_whole")


def _call(model: nn.Module, function: Any, *args: Any) -> Any:
    out = function(*args)
    # The hooks before the backward pass sit on the results, and would be lost by a change in place to a view.
    return tuple(each.clone() for each in out) if isinstance(out, tuple) else out


def read_shards(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint that was saved in shards on one process: its weights whole, without the optimiser's state.

    Args:
        folder: Folder of the checkpoint.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    kept = reader.read_metadata().state_dict_metadata
    weights: dict[str, Tensor] = {
        name: torch.empty(about.size, dtype=about.properties.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for name, about in kept.items()
        if name.startswith("state_dict.")
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what no_dist asks for
        load(weights, storage_reader=reader, no_dist=True)
    saved = torch.load(folder / "meta.pt", map_location="cpu", weights_only=True)
    return {**saved, "state_dict": {name.removeprefix("state_dict."): value for name, value in weights.items()}}
