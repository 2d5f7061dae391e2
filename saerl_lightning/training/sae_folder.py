"""The folder of a finished SAE, which `sae_lens.SAE.load_from_disk` opens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import saerl_lightning
from saerl_lightning.errors import InputError
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.staging import whole_folder

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE


def require_replaceable(folder: Path, replace: bool) -> None:
    """Refuses a place that holds something else than an SAE, or an SAE that is not to be replaced.

    Args:
        folder: that the finished SAE goes to.
        replace: whether an SAE may be replaced.

    Raises:
        InputError: if the folder may not be written over.
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
    """Writes into an SAE's metadata which model and layer it reads, under the names that sae-lens knows.

    Args:
        sae: that is going to be saved.
        model: whose residual stream it was trained on.
        explained_variance: as last measured; NaN is left out.
    """
    layer = model.config()[0]
    sae.cfg.metadata["model_name"] = model.path
    sae.cfg.metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    sae.cfg.metadata["layer"] = layer
    sae.cfg.metadata["saerl_version"] = saerl_lightning.__version__
    if not math.isnan(explained_variance):
        sae.cfg.metadata["explained_variance"] = explained_variance


def save(sae: SAE[Any], folder: Path) -> None:
    """Writes an SAE's weights and configuration; the folder is whole or absent, and an older SAE there is replaced.

    Raises:
        InputError: if the folder holds something else than an SAE.
    """
    require_replaceable(folder, replace=True)
    with whole_folder(folder, replace=True) as staged:
        sae.save_model(staged)
