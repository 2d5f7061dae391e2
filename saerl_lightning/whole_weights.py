"""Loads language models and classifiers, and refuses weights that are incomplete or not finite.

transformers fills missing tensors with random numbers and drops unknown ones, with only a warning. A run would then
train a partly random model.
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
    """Loads a causal language model with its head.

    Args:
        path: Local HF folder, or name on the hub.
        setting: Name of the user's setting, for messages ("policy.path").
        settings: Further arguments of `from_pretrained`.

    Raises:
        InputError: if loading fails, a tensor is missing, unknown or of the wrong shape, or a number is NaN or
            infinite.
    """
    from transformers import AutoModelForCausalLM

    return _load_whole(AutoModelForCausalLM, path, setting, **settings)


def load_classifier(path: str, setting: str, **settings: Any) -> PreTrainedModel:
    """Loads a sequence classifier with its head, from safetensors alone and without code of its folder.

    Args:
        path: Local HF folder, or name on the hub.
        setting: Name of the user's setting, for messages ("ModelReward.path").
        settings: Further arguments of `from_pretrained`.

    Raises:
        InputError: as for a causal language model; also if the folder is one of those, without a head that scores.
    """
    from transformers import AutoModelForSequenceClassification

    safe = {"use_safetensors": True, "trust_remote_code": False}
    return _load_whole(AutoModelForSequenceClassification, path, setting, **settings, **safe)


def _load_whole(auto: Any, path: str, setting: str, **settings: Any) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers.utils import logging

    hub.look_up(path)
    verbosity = logging.get_verbosity()
    # Otherwise transformers' own report on keys would be printed before our error.
    logging.set_verbosity_error()
    try:
        # Without ignore_mismatched_sizes, transformers' error would not name the tensors with wrong shapes.
        loaded: Any = auto.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
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
    """Refuses weights that contain NaN or infinity.

    Args:
        weights: Tensors by their names.
        where: Origin of the weights, for the message.

    Raises:
        InputError: with the names of the tensors.
    """
    if broken := [name for name, tensor in weights.items() if not _finite(tensor)]:
        raise InputError(f"{where} has NaN or infinity in {_some(broken)}; take another copy, or an earlier checkpoint")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _some(names: Iterable[str]) -> str:
    """Lists the first three names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
