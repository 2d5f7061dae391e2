"""The policy's weights under the names that transformers and vLLM know, adapters merged in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.policy.load import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of its adapters' wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model  # pyright: ignore[reportReturnType]


@torch.no_grad()
def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of the whole state dict, the tied head under its own name too.

    A LoRA layer is yielded as W + scaling B A, computed aside: merging in place and back would move W by a rounding error
    each time. Engines need the tied head: without it vLLM keeps its old copy, 1.4 to 1.8 nats wrong and no warning.
    """
    if not hasattr(model, "get_base_model"):
        yield from model.state_dict().items()
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
        yield name, tensor


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Writes the LoRA adapters alone, in peft's layout, without asking any host about the base model."""
    model.save_pretrained(folder, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]


def without_adapters(model: nn.Module) -> AbstractContextManager[object]:
    """Runs the model as it was before training: adapters off. A model without adapters is left as it is."""
    disable = getattr(model, "disable_adapter", None)
    return disable() if disable else nullcontext()


@torch.no_grad()
def fingerprint(model: nn.Module) -> list[float]:
    """Two numbers for each weight and buffer that tell its present values from others, however they were changed.

    They are read off the values: in-place changes through `.data`, as Lightning's WeightAveraging makes them, raise no
    counter of torch's. The bits' exclusive or misses a change of all signs, the sum does not.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.numel()]
    bits = torch.stack([torch.hash_tensor(t).view(torch.int64) for t in tensors])
    sums = torch.stack([t.sum().double() for t in tensors])
    return [*bits.tolist(), *sums.tolist()]


FROM_WEIGHTS = ", or begin a new run from its weights: export it, and write --model.policy.path FOLDER"


@dataclass(frozen=True)
class PolicyCheckpoint:
    """A trained policy's weights, and the numbers it takes to put them back into its model.

    Where that model is, and whether its code may run, is never read from the file: who wrote it could name any folder.
    """

    trained_from: str  # as the file says; only shown
    dtype: Literal["float32", "bfloat16"]
    lora: LoRA | None
    weights: dict[str, Tensor]  # adapters beside the weights they adapt

    @classmethod
    def read(cls, path: Path) -> PolicyCheckpoint:
        """Reads the file on the CPU.

        Raises:
            InputError: if it is missing, unreadable, or not of a policy.
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
        return cls(str(noted.get("path")), dtype, lora, weights)


def require_readable(path: Path) -> None:
    """Refuses a file that is no whole checkpoint, or whose bytes are not those that were written.

    Raises:
        InputError: if it is missing or unreadable.
    """
    _load(path, mmap=True)


def require_usable(path: Path, to_go_on: bool) -> None:
    """Refuses a file that Lightning could not take up: unreadable, not of a run, or without what a run goes on with.

    Args:
        path: of the file.
        to_go_on: training is to go on from it, for which it must hold more than weights.

    Raises:
        InputError: if it is missing, unreadable, or lacks what is needed.
    """
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
    """What a run could not go on without."""
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
    """The file beside a checkpoint that knows what was written."""
    return path.with_name(f"{path.name}.sha256")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digests(path: Path) -> list[str]:
    """Digests that a checkpoint may have: of what was written last and, if that was cut off, before; none where unknown."""
    beside = digests_file(path)
    return beside.read_text(errors="replace").split() if beside.is_file() else []


def require_undamaged(path: Path) -> None:
    """Refuses a file whose bytes are not those that were written; one without a digest beside it passes.

    Raises:
        InputError: naming the file.
    """
    known = known_digests(path)
    if known and path.is_file() and digest_of(path) not in known:
        raise InputError(
            f"'{path}' is damaged: its bytes are not those that were written ({digests_file(path).name} beside it); give "
            "another checkpoint, or train again (if you put the file there yourself, delete the one beside it)"
        )


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no checkpoint at '{path}'; write the path of a .ckpt file, e.g. RUN/checkpoints/last.ckpt")
    require_undamaged(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        reason = first_line(error)
        raise InputError(f"'{path}' is no readable checkpoint ({reason}); give another, or train again") from error
    weights = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise InputError(
            f"'{path}' is no checkpoint of a run: it has no state_dict of tensors; write e.g. RUN/checkpoints/last.ckpt"
        )
    return saved
