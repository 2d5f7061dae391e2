"""A model folder whose config and weights are of two models, or whose weights are no numbers, is refused as it is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.sae_source import SAESource
from tests.training.conftest import data, fit, module, trainer


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(build_tiny_policy(str(tmp_path / "tiny"), ["1 + 2 = 3"], hidden_size=32, layers=2, vocab_size=270))


def readers(folder: Path):
    """The policy, and the model that signals and SAEs read."""
    return [Policy(str(folder)).load_model, ReadModel(str(folder), layer=0, device="cpu").load_whole]


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def with_layers(folder: Path, layers: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))


def test_a_whole_model_is_loaded_and_its_head_stays_tied(folder):
    for load in readers(folder):
        model = load()
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_three_layers_over_the_weights_of_two_are_refused(folder):
    with_layers(folder, 3)
    for load in readers(folder):
        with pytest.raises(InputError, match=r"weights lack model\.layers\.2\.\S+, .* and 9 more; save it whole"):
            load()


def test_one_layer_over_the_weights_of_two_is_refused(folder):
    with_layers(folder, 1)
    for load in readers(folder):
        with pytest.raises(InputError, match=r"config.json knows nothing of model\.layers\.1\."):
            load()


def test_a_tensor_of_another_shape_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    for load in readers(folder):
        with pytest.raises(
            InputError, match=r"other shapes than .* model\.norm\.weight \(31,\) for \(32,\); save it whole"
        ):
            load()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused(folder, value):
    rewrite(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
    for load in readers(folder):
        with pytest.raises(InputError, match=r"NaN or infinity in model\.layers\.1\.mlp\.up_proj\.weight;"):
            load()


def test_an_sae_with_a_weight_that_is_no_number_is_refused(folder, tmp_path):
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=8, k=2))
    sae.W_enc.data[0, 0] = math.nan
    sae.save_model(tmp_path / "sae")
    with pytest.raises(InputError, match="NaN or infinity in W_enc"):
        SAESource(str(tmp_path / "sae")).load(ReadModel(str(folder), layer=0, device="cpu"))


def test_a_checkpoint_with_a_weight_that_is_no_number_is_refused(folder, tmp_path):
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(module(str(folder)), data(), trainer(tmp_path, 1, (keep,), enable_checkpointing=True))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["state_dict"]["model.model.norm.weight"][0] = math.nan
    torch.save(saved, tmp_path / "broken.ckpt")
    with pytest.raises(InputError, match="the checkpoint has NaN or infinity in"):
        fit(module(str(folder)), data(), trainer(tmp_path, 2), ckpt_path=str(tmp_path / "broken.ckpt"))
