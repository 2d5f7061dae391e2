"""Weights of the policy: named for transformers and vLLM with adapters merged, saved, and read from checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.policy.load import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside the adapters' wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model  # pyright: ignore[reportReturnType]


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the model's weights only."""
    return hasattr(model, "call_whole")


def whole(tensor: Tensor) -> Tensor:
    """Gathers the whole of a sharded tensor: a collective. Other tensors are returned as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def own_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds. Other tensors are returned as they are."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def with_whole_weights(model: nn.Module, function: Callable[..., T], *args: Any) -> T:
    """Calls a function that uses the model's decoder and head; of a sharded model, within the hooks of its forward.

    All processes must call it equally often, because each layer is gathered from all of them. Calls may be nested.
    """
    if not is_sharded(model) or vars(model).get("_within", False):
        return function(*args)
    sharded: Any = model
    sharded._within = True
    try:
        return sharded.call_whole(function, *args)
    finally:
        sharded._within = False
        if not torch.is_grad_enabled():  # no backward pass follows that would give the root's weights back
            sharded.reshard()


@torch.no_grad()
def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of the full state dict, with LoRA merged and the tied output head under its own name too.

    A LoRA layer is yielded as W + scaling B A, computed in a new tensor: merging in place and back would change W by a
    rounding error each time. Engines need the tied head: without it vLLM keeps its old copy, and its log-probabilities
    are wrong by 1.4 to 1.8 nats without a warning. The weights of a sharded model are gathered one by one: all processes
    must go through all of them.
    """
    if not hasattr(model, "get_base_model"):
        yield from ((name, whole(tensor)) for name, tensor in model.state_dict().items())
        return
    from peft.tuners.lora import LoraLayer

    base = base_model(model)
    deltas = {f"{n}.weight": m for n, m in base.named_modules() if isinstance(m, LoraLayer)}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if name in deltas:
            layer = deltas[name]
            deltas_of = layer.get_delta_weight  # pyright: ignore[reportAttributeAccessIssue]
            tensor = tensor + sum(deltas_of(adapter) for adapter in layer.active_adapters)
        yield name, whole(tensor)


@torch.no_grad()
def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights that LoRA adapters are added to, under transformers' names; gathers shards, as `named_weights`."""
    for name, tensor in base_model(model).state_dict().items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), whole(tensor)


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Writes the LoRA adapters alone, in peft's format; the base model is not looked up on any host."""
    adapters = {name: whole(each) for name, each in model.state_dict().items() if ".lora_" in name}
    model.save_pretrained(folder, state_dict=adapters, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]


def without_adapters(model: nn.Module) -> AbstractContextManager[object]:
    """Switches LoRA adapters off inside the block: the model before training. Other models are left as they are."""
    disable = getattr(model, "disable_adapter", None)
    return disable() if disable else nullcontext()


@torch.no_grad()
def fingerprint(model: nn.Module) -> list[float]:
    """Computes two numbers for each weight and buffer that change when its values change; of this process's part.

    They are computed from the values: in-place changes through `.data`, as in Lightning's WeightAveraging, don't raise
    torch's version counters. The exclusive or of the bits does not see a change of all signs; the sum does.
    """
    tensors = [own_part(t) for t in (*model.parameters(), *model.buffers())]
    tensors = [t for t in tensors if t.numel()]
    bits = torch.stack([torch.hash_tensor(t).view(torch.int64) for t in tensors])
    sums = torch.stack([t.sum().double() for t in tensors])
    return [*bits.tolist(), *sums.tolist()]


FROM_WEIGHTS = ", or begin a new run from its weights: export it, and write --model.policy.path FOLDER"


@dataclass(frozen=True)
class PolicyCheckpoint:
    """Weights of a trained policy, with the dtype and LoRA settings that are needed to load them into its model.

    The model's folder, and whether its code may run, are never taken from the file: a foreign file could name any
    folder.
    """

    trained_from: str  # the path that the file names; used in messages only
    dtype: Literal["float32", "bfloat16"]
    lora: LoRA | None
    weights: dict[str, Tensor]  # adapters are not merged
    step: int = 0  # optimiser steps that were taken

    @classmethod
    def read(cls, path: Path) -> PolicyCheckpoint:
        """Reads the checkpoint on the CPU.

        Raises:
            InputError: if the file is missing or unreadable, or is not a policy's.
        """
        saved = _load(path)
        try:
            noted = saved["policy"]
            dtype, lora = noted["dtype"], LoRA(**noted["lora"]) if noted["lora"] else None
        except (KeyError, TypeError) as error:
            raise InputError(f"'{path}' holds no policy; it was not written by GRPOModule or SFTModule") from error
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"'{path}' says its weights are {dtype!r:.40}; they are float32 or bfloat16")
        weights = {n.removeprefix("model."): t for n, t in saved["state_dict"].items()}
        return cls(str(noted.get("path")), dtype, lora, weights, int(saved.get("global_step", 0)))


def require_readable(path: Path) -> None:
    """Refuses a file that is not a complete checkpoint, or whose bytes have changed since it was written.

    Raises:
        InputError: if it is missing or unreadable.
    """
    _load(path, mmap=True)


def require_usable(path: Path, to_go_on: bool, sharded: bool = False) -> None:
    """Refuses a file that Lightning can't start from: unreadable, not from a run, or incomplete for resuming.

    Args:
        path: Path of the checkpoint.
        to_go_on: Whether training will resume from it, which needs more than weights.
        sharded: Whether the run shards its policy over its processes.

    Raises:
        InputError: if the file is missing, unreadable, or lacks what is needed.
    """
    if (path / "meta.pt").is_file():
        if to_go_on and not sharded:
            raise InputError(f"'{path}' was saved in shards; go on with --trainer.strategy sharded{FROM_WEIGHTS}")
        return
    saved = _load(path, mmap=True)
    written_with = saved.get("pytorch-lightning_version")
    if not isinstance(written_with, str) or not re.match(r"\d+\.\d", written_with):
        raise InputError(
            f"'{path}' was not written by a run: it says {written_with!r:.40} for the version of Lightning; give a "
            f"checkpoint of a run, e.g. RUN/checkpoints/last.ckpt{FROM_WEIGHTS if to_go_on else ''}"
        )
    if to_go_on and (lacking := _lacking(saved)):
        raise InputError(
            f"'{path}' can't be gone on with: it holds no {lacking}, as a checkpoint of weights alone; give a whole one, "
            f"e.g. RUN/checkpoints/last.ckpt{FROM_WEIGHTS}"
        )


def _lacking(saved: dict[str, Any]) -> str | None:
    """Names the first missing entry that a resumed run needs; None if there is none."""
    states, loops = saved.get("optimizer_states"), saved.get("loops")
    if not isinstance(states, list) or not states or not all(isinstance(each, dict) for each in states):
        return "state of an optimiser (optimizer_states)"
    if not isinstance(saved.get("lr_schedulers"), list):
        return "learning rates (lr_schedulers)"
    if not isinstance(loops, dict) or not isinstance(loops.get("fit_loop"), dict):
        return "place in the run (loops)"
    if type(saved.get("global_step")) is not int or type(saved.get("epoch")) is not int:
        return "step and epoch"
    return None if isinstance(saved.get("callbacks"), dict) else "state of the callbacks"


def digests_file(path: Path) -> Path:
    """The file beside a checkpoint that holds its SHA-256 digests."""
    return path.with_name(f"{path.name}.sha256")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digests(path: Path) -> list[str]:
    """Reads the digests that a checkpoint may have; empty if unknown.

    There are two while a checkpoint is being replaced: of the new file, and of the old one if the write was
    interrupted.
    """
    beside = digests_file(path)
    return beside.read_text(errors="replace").split() if beside.is_file() else []


def require_undamaged(path: Path) -> None:
    """Refuses a file whose bytes have changed since it was written; a file without a digest beside it passes.

    Raises:
        InputError: if the digest of the file is not one of those beside it.
    """
    known = known_digests(path)
    if known and path.is_file() and digest_of(path) not in known:
        raise InputError(
            f"'{path}' is damaged: its bytes are not those that were written ({digests_file(path).name} beside it); give "
            "another checkpoint, or train again (if you put the file there yourself, delete the one beside it)"
        )


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    if (path / "meta.pt").is_file():
        from saerl_lightning.policy.sharding import read_shards

        return read_shards(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at '{path}'; write the path of a .ckpt file, e.g. RUN/checkpoints/last.ckpt")
    require_undamaged(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # torch raises many kinds of exceptions for a truncated or foreign file.
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"'{path}' is no readable checkpoint ({reason}); give another, or train again") from error
    weights = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise InputError(
            f"'{path}' is no checkpoint of a run: it has no state_dict of tensors; write e.g. RUN/checkpoints/last.ckpt"
        )
    return saved
