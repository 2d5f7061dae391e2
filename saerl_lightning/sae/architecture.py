"""Builds sae-lens's training SAEs by name, checks their options, and converts them to the form that is saved.

Every architecture in sae-lens's registry can be trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

import saerl_lightning
from saerl_lightning.errors import InputError
from saerl_lightning.files import whole_folder
from saerl_lightning.ranges import HUGE
from saerl_lightning.signals.model import ReadModel

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE, TrainingSAE, TrainingSAEConfig


Options = Mapping[str, bool | int | float | str | list[int] | None]

# Fields of sae-lens's configuration that we set, and users don't.
OURS = frozenset({"d_in", "d_sae", "dtype", "device", "normalize_activations", "reshape_activations", "metadata"})


def build(architecture: str, d_in: int, d_sae: int, options: Options, seed: int) -> TrainingSAE[Any]:
    """Builds an SAE with random weights.

    Args:
        architecture: Name in sae-lens's registry.
        d_in: Width of the activations (d).
        d_sae: Number of features (F).
        options: Further fields of the architecture's configuration.
        seed: Seed of the weights. The global random state does not change.

    Raises:
        InputError: if the architecture or an option does not exist, or an option's value is invalid.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from a library that sae-lens imports
        import sae_lens  # noqa: F401  # fills the registry
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise InputError(
            f"there is no SAE architecture '{architecture}'; write one of {', '.join(sorted(SAE_TRAINING_CLASS_REGISTRY))}"
        )
    if d_sae < 1:
        raise InputError(f"the SAE would have {d_sae} features; write a d_sae or an expansion of 1 or more")
    sae_class, config_class = get_sae_training_class(architecture)
    checked = _checked(architecture, config_class, options)
    if not 0 < checked.get("k", 1) <= d_sae:
        raise InputError(f"option k is {checked['k']}, but the SAE has {d_sae} features; write 1 to {d_sae}")
    if checked.get("use_sparse_activations"):
        if checked.get("rescale_acts_by_decoder_norm", True):
            raise InputError(
                "option use_sparse_activations is true, and torch has no gradient for sparse activations that are rescaled; "
                "write rescale_acts_by_decoder_norm: false beside it"
            )
        # Torch's default, set explicitly because torch warns if it was never set.
        torch.sparse.check_sparse_tensor_invariants.disable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return sae_class(config_class(d_in=d_in, d_sae=d_sae, **checked))
        except ValueError as error:
            raise InputError(f"the options of '{architecture}' do not fit together: {error}") from error


def _checked(architecture: str, config: type[TrainingSAEConfig], options: Options) -> dict[str, Any]:
    """Returns the options, with their types checked against the fields of the configuration class."""
    allowed = {field.name: field.default for field in fields(config) if field.name not in OURS}
    listed = ", ".join(f"{name} ({default})" for name, default in allowed.items())
    if unknown := sorted(options.keys() - allowed):
        raise InputError(f"'{architecture}' has no option {', '.join(unknown)}; it has (with defaults) {listed}")
    for name, value in options.items():
        if isinstance(value, int | float) and not 0 <= value <= HUGE:
            raise InputError(f"option {name} of '{architecture}' is {value}; write a number from 0 to {HUGE:g}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config, skip=set(OURS))
    try:
        return {name: parser.parse_object({**options})[name] for name in options}
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"an option of '{architecture}' does not fit: {reason}; it has (with defaults) {listed}"
        ) from error


def coefficients(sae: TrainingSAE[Any], step: int) -> dict[str, float]:
    """Returns the weights of an SAE's sparsity penalties at a step, with sae-lens's warm-up.

    They depend on the step alone, so checkpoints need not store them.
    """
    from sae_lens.saes.sae import TrainCoefficientConfig
    from sae_lens.training.optim import CoefficientScheduler

    values = {}
    for name, given in sae.get_coefficients().items():
        value, warm_up = given if isinstance(given, TrainCoefficientConfig) else (given, 0)
        scheduler = CoefficientScheduler(warm_up, value)
        scheduler.load_state_dict({"current_step": step})
        values[name] = scheduler.value
    return values


def inference(sae: TrainingSAE[Any], scale: float) -> SAE[Any]:
    """Copies a training SAE into the SAE that is saved, which reads unscaled activations.

    The training SAE reads activations times `scale` and is not changed. The copy is converted as sae-lens does when it
    saves: TopK kinds get decoder rows of norm 1, and BatchTopK becomes a JumpReLU with a threshold (see
    `threshold_for`).
    """
    from sae_lens.saes.sae import SAE

    copy = type(sae)(type(sae.cfg).from_dict(sae.cfg.to_dict()))
    copy.load_state_dict({name: tensor.detach().cpu().clone() for name, tensor in sae.state_dict().items()})
    copy.fold_activation_norm_scaling_factor(scale)
    weights = copy.state_dict()
    copy.process_state_dict_for_saving_inference(weights)
    saved = SAE.from_dict(copy.cfg.get_inference_sae_cfg_dict())
    saved.load_state_dict(weights)
    return saved.requires_grad_(False).eval()


def active_on_average(sae: TrainingSAE[Any]) -> float | None:
    """Returns the k of a BatchTopK SAE, which is saved as a JumpReLU and needs a threshold; None for other kinds."""
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE

    return sae.cfg.k if isinstance(sae, BatchTopKTrainingSAE) else None


@torch.no_grad()
def threshold_for(saved: Any, activations: Float[Tensor, "n d"], k: float) -> float:
    """Finds the threshold at which a JumpReLU has k active features per position, on average over the activations.

    The threshold that BatchTopK learns lags behind by hundreds of steps, so after a short run far too many features
    would be active.

    Args:
        saved: SAE with one threshold for all features. It is not changed.
        activations: Unscaled activations of the model.
        k: Desired number of active features per position.

    Returns:
        A number between the last active feature's value and the next one; 0 if fewer than the desired number are
        positive.
    """
    given, wanted = saved.threshold.clone(), round(k * len(activations))
    saved.threshold.zero_()
    largest = saved.threshold.new_zeros(0)
    # Only the largest wanted + 1 values are kept, because all values of all positions may not fit into memory.
    for block in activations.split(1024):
        acts = saved.encode(block.to(saved.W_dec)).flatten()
        largest = torch.cat([largest, acts[acts > 0]])
        largest = largest.topk(min(wanted + 1, len(largest))).values
    saved.threshold.copy_(given)
    return float(largest[-2:].mean()) if len(largest) > wanted else 0.0


def require_same_shapes(saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuses weights of a different SAE.

    Raises:
        InputError: with the first weight that differs.
    """
    there, here = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (saved, own))
    if differing := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
        name = differing[0]
        raise InputError(
            f"the checkpoint is of another SAE: {name} is {there.get(name, 'missing')} there and "
            f"{here.get(name, 'missing')} here; give the architecture, expansion and model that it was trained with"
        )


def require_replaceable(folder: Path, replace: bool) -> None:
    """Refuses a folder that holds something other than an SAE, or an SAE that must not be replaced.

    Args:
        folder: Folder for the finished SAE.
        replace: Whether an existing SAE may be replaced.

    Raises:
        InputError: if the folder must not be overwritten.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "cfg.json").is_file()):
        raise InputError(
            f"save_to is '{folder}', which exists and holds no SAE (no cfg.json), so it is not replaced; name another folder"
        )
    if not replace and (folder / "cfg.json").is_file():
        raise InputError(
            f"save_to is '{folder}', which holds an SAE; write another --model.save_to, or --model.replace true to replace it"
        )


def describe(sae: SAE[Any], model: ReadModel, explained_variance: float) -> None:
    """Writes the model and the layer that an SAE reads into its metadata, under sae-lens's names.

    Args:
        sae: SAE that will be saved.
        model: Model and layer that the SAE was trained on.
        explained_variance: Explained variance as last measured; NaN is left out.
    """
    layer = model.config()[0]
    sae.cfg.metadata["model_name"] = model.path
    sae.cfg.metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    sae.cfg.metadata["layer"] = layer
    sae.cfg.metadata["saerl_version"] = saerl_lightning.__version__
    if not math.isnan(explained_variance):
        sae.cfg.metadata["explained_variance"] = explained_variance


def save(sae: SAE[Any], folder: Path) -> None:
    """Writes an SAE's weights and configuration to a folder, atomically. An SAE in the folder is replaced.

    Raises:
        InputError: if the folder holds something other than an SAE.
    """
    require_replaceable(folder, replace=True)
    with whole_folder(folder, replace=True) as staged:
        sae.save_model(staged)
