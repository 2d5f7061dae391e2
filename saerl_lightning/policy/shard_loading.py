"""Loads a policy in shards: it is built without weights, and each process reads its own part of every tensor.

No process ever holds the whole model, with LoRA adapters or without. Folders that this can't be done for are loaded whole
by each process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from saerl_lightning import hub
from saerl_lightning.errors import InputError, first_line
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.sharding import shard
from saerl_lightning.policy.weights import base_model, own_part
from saerl_lightning.ranks.collectives import agreed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

INDEX, ONE = "model.safetensors.index.json", "model.safetensors"


def load_over(policy: Policy, mesh: DeviceMesh, device: torch.device, compute: torch.dtype | None) -> PreTrainedModel:
    """Loads a policy in shards, part by part where that can be done. All processes call it.

    Args:
        policy: Policy to load.
        mesh: Processes that share the weights.
        device: Device of this process.
        compute: Floating-point type that layers are gathered and computed in; null for that of the weights.

    Raises:
        InputError: on the processes that can't load it; the others stop with them.
    """
    over = partial(shard, mesh=mesh, compute=compute)
    with agreed():  # the folder may be missing on one machine
        if (model := load_sharded(policy, over, device)) is not None:
            return model
        model = policy.load_model()
    over(model)
    return model


def load_sharded(
    policy: Policy, over: Callable[[PreTrainedModel], None], device: torch.device
) -> PreTrainedModel | None:
    """Loads a policy so that each process reads its own part; None if that can't be done.

    Args:
        policy: Policy to load.
        over: Function that shards a model.
        device: Device of this process.

    Raises:
        InputError: if a part can't be read, or holds NaN or infinity.
    """
    files = weight_files(policy.path)
    if not files:
        return None
    try:
        with weightless():
            model = policy.build()
    except (OSError, ValueError, RuntimeError, ImportError):
        return None  # loading whole says what is wrong with it
    if not has_tensors(model, files):
        return None
    model = _with_adapters(policy, model) if policy.lora else model
    over(model)
    load_parts(model, files, device)
    return model.eval()


def weight_files(path: str) -> dict[str, Path]:
    """Finds the safetensors file of each tensor; {} for a folder with other files, or a hub name that is not cached.

    Args:
        path: HF folder, or name on the hub.
    """
    from safetensors import SafetensorError, safe_open

    folder = hub.folder_of(path)
    try:
        if folder is None:
            return {}
        if (folder / INDEX).is_file():
            named: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in named.items()}
        if (folder / ONE).is_file():
            with safe_open(folder / ONE, framework="pt") as file:
                return dict.fromkeys(file.keys(), folder / ONE)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        pass  # loading whole says what is wrong with it
    return {}


def weightless() -> RemovableHandle:
    """Registers parameters on the meta device inside the block; buffers, such as rotary frequencies, are computed."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return parameter if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    return register_module_parameter_registration_hook(on_meta)  # pyright: ignore[reportArgumentType]


def has_tensors(model: nn.Module, files: dict[str, Path]) -> bool:
    """Whether the files have just the model's tensors by their own names, without those that are tied to others.

    Args:
        model: Model without weights.
        files: File of each tensor.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    wanted |= {name: tuple(tensor.shape) for name, tensor in model.named_buffers() if name in model.state_dict()}
    tied = model.state_dict().keys() - wanted.keys()
    named = files.keys() - tied
    return named == wanted.keys() and all(_shape(files[name], name) == shape for name, shape in wanted.items())


def _with_adapters(policy: Policy, model: PreTrainedModel) -> PreTrainedModel:
    """Adds adapters to a model without weights; they are drawn as for one with weights.

    peft puts adapters where the weights are: on the meta device they would lose what was drawn. So empty weights on the
    CPU stand in meanwhile.
    """
    places = _ties(model)
    weights: list[nn.Parameter] = [getattr(*first) for first, *_ in places]
    for weight, tied in zip(weights, places, strict=True):
        _set(tied, nn.Parameter(torch.empty(0, dtype=weight.dtype)))
    adapted = policy.with_adapters(model)
    for weight, tied in zip(weights, places, strict=True):
        _set(tied, weight.requires_grad_(getattr(*tied[0]).requires_grad))
    return adapted


def load_parts(model: nn.Module, files: dict[str, Path], device: torch.device) -> None:
    """Gives a sharded model without weights its own part of every tensor.

    Args:
        model: Model whose parameters are sharded on the meta device.
        files: File of each tensor.
        device: Device of this process.

    Raises:
        InputError: if a part can't be read, or holds NaN or infinity.
    """
    ties = _ties(model)
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    for first, *others in ties:
        _set(others, getattr(*first))
    base = base_model(model)
    named: dict[str, Any] = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    held = {name.replace(".base_layer.", "."): tensor for name, tensor in named.items()}
    with torch.no_grad():
        for name, file in files.items():
            if name in held:
                _read(held[name], name, file)


def _ties(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Places of each parameter in the model, in the order of its modules."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    return list(places.values())


def _set(places: list[tuple[nn.Module, str]], parameter: Tensor) -> None:
    for module, name in places:
        setattr(module, name, parameter)


def _read(tensor: Tensor, name: str, file: Path) -> None:
    """Reads this process's part. The file is opened for each tensor, so that no page of another one stays in memory."""
    from safetensors import SafetensorError, safe_open

    own = own_part(tensor)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = opened.get_slice(name)
            own.copy_(slices[_rows(tensor)] if tensor.dim() else opened.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{name} can't be read from '{file}': {first_line(error)}; take another copy") from error
    if own.is_floating_point() and not bool(own.isfinite().all()):
        raise InputError(f"'{file}' has NaN or infinity in {name}; take another copy, or an earlier checkpoint")


def _rows(tensor: Any) -> slice:
    """Rows of the whole tensor that this process holds."""
    if not hasattr(tensor, "to_local"):
        return slice(None)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0])


def _shape(file: Path, name: str) -> tuple[int, ...] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())
    except (OSError, SafetensorError):
        return None
