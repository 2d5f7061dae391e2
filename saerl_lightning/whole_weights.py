"""Weights that are whole: every tensor that a model has is in its folder, and every number in them is one.

transformers fills a missing tensor with random numbers and drops one it does not know, both with a warning; a training run
would begin with a random layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saerl_lightning import hub
from saerl_lightning.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_causal_lm(path: str, setting: str, **settings: Any) -> PreTrainedModel:
    """Loads a causal language model, head and all.

    Args:
        path: HF folder or hub name.
        setting: where the user wrote it, for messages ("policy.path").
        settings: further ones of `from_pretrained`.

    Raises:
        InputError: if it can't be loaded, lacks a tensor, has one too many, or holds a number that is none.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    hub.look_up(path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on keys would come before the refusal
    try:
        # Tensors of a wrong shape are reported with the missing ones: else transformers' error names none of them.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
        model, report = loaded
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(f"no model could be loaded from {setting} '{path}': {reason}{hub.advice(path)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if mismatched := [
        f"{name} {tuple(saved)} for {tuple(made)}" for name, saved, made in sorted(report["mismatched_keys"])
    ]:
        raise InputError(
            f"{setting} '{path}' is not one model: its weights have other shapes than its config.json gives them, "
            f"{_some(mismatched)}; save it whole, with save_pretrained"
        )
    wrong = {"its weights lack": "missing_keys", "its config.json knows nothing of": "unexpected_keys"}
    for complaint, kind in wrong.items():
        if names := sorted(report[kind]):
            raise InputError(
                f"{setting} '{path}' is not one model: {complaint} {_some(names)}; save it whole, with save_pretrained"
            )
    require_finite_weights(model.state_dict(), f"{setting} '{path}'")
    return model


def require_finite_weights(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuses weights with NaN or infinity in them.

    Args:
        weights: by name.
        where: they came from, for the message.

    Raises:
        InputError: naming the tensors.
    """
    if broken := [name for name, tensor in weights.items() if not _finite(tensor)]:
        raise InputError(f"{where} has NaN or infinity in {_some(broken)}; take another copy, or an earlier checkpoint")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _some(names: Iterable[str]) -> str:
    """The first three of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
