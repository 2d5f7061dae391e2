"""A tiny model and tiny SAEs on disk, for everything that reads models."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.sae_source import SAESource

WIDTH, FEATURES, ACTIVE, LAYER = 64, 256, 8, 2


@dataclass(frozen=True)
class Tiny:
    """Places of the tiny parts, and somewhere to write."""

    model: ReadModel
    sae: SAESource
    other: SAESource
    first_layer: SAESource
    frozen: SAESource
    folder: Path


def save_random_sae(
    folder: Path, d_in: int = WIDTH, normalize: str = "none", seed: int = 0, **metadata: object
) -> SAESource:
    """Saves a random TopK SAE as one that was trained with these metadata."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    known = {"model_name": "Some/Reader", "hook_name": f"blocks.{LAYER}.hook_resid_post"} | metadata
    config = TopKSAEConfig(d_in, FEATURES, k=ACTIVE, normalize_activations=normalize, metadata=SAEMetadata(**known))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = TopKSAE(config)
        torch.nn.init.normal_(sae.b_enc, std=0.02)
    sae.save_model(folder)
    return SAESource(str(folder))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    with warnings.catch_warnings():  # on import
        warnings.filterwarnings("ignore", message="The 'utils' module", category=DeprecationWarning)
        import sae_lens  # noqa: F401
    folder = tmp_path_factory.mktemp("signals")
    build_tiny_policy(str(folder / "reader"), ["What is one plus two? Tell me why."], hidden_size=WIDTH, layers=4)
    model = ReadModel(str(folder / "reader"), device="cpu")
    saes = {
        "sae": save_random_sae(folder / "sae"),
        "other": save_random_sae(folder / "other", seed=1),
        "first_layer": save_random_sae(folder / "first", hook_name="blocks.1.hook_resid_post"),
        "frozen": save_random_sae(folder / "frozen", frozen_decoder=True),
    }
    return Tiny(model, **saes, folder=folder)


@pytest.fixture
def save_sae(tiny: Tiny) -> Callable[..., SAESource]:
    return save_random_sae
