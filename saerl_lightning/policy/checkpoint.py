"""Checkpoint files read from outside a run. Lightning writes them; `PolicyModule` notes in them which policy they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import LoRA, Policy


@dataclass(frozen=True)
class PolicyCheckpoint:
    """A trained policy: how it was loaded, and its weights now."""

    policy: Policy
    weights: dict[str, Tensor]  # adapters beside the weights they adapt

    @classmethod
    def read(cls, path: Path) -> PolicyCheckpoint:
        """Reads the file on the CPU.

        Raises:
            InputError: if it is missing, unreadable, or not of a policy.
        """
        saved = _load(path)
        if "policy" not in saved:
            raise InputError(f"'{path}' holds no policy; it was not written by GRPOModule or SFTModule")
        adapters = saved["policy"]["lora"]
        policy = Policy(**{**saved["policy"], "lora": LoRA(**adapters) if adapters else None})
        return cls(policy, {n.removeprefix("model."): t for n, t in saved["state_dict"].items()})


def require_readable(path: Path) -> None:
    """Refuses a file that is no whole checkpoint, without reading its tensors.

    Raises:
        InputError: if it is missing or unreadable.
    """
    _load(path, mmap=True)


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no checkpoint at '{path}'; write the path of a .ckpt file, e.g. RUN/checkpoints/last.ckpt")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"'{path}' is no readable checkpoint ({reason}); give another, or train again") from error
    if "state_dict" not in saved:
        raise InputError(
            f"'{path}' is no checkpoint of a run: it has no state_dict; write e.g. RUN/checkpoints/last.ckpt"
        )
    return saved
