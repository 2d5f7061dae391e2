"""Everything an SAE can be refused for, with the message that says what to do."""

import json
import shutil
from dataclasses import replace

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.signals.sae_source import SAESource, hooked_layer

REFUSED = {
    "reads 32 numbers a token, but .* stream of 64": {"d_in": 32},
    "trained on 'smollm2-135m', but the model that is read is 'reader'.*check_model": {
        "model_name": "Org/SmolLM2-135M"
    },
    "reads layer 1 .*but layer 2 .*`layer: 1`": {"hook_name": "blocks.1.hook_resid_post"},
    "reads layer 3 .*but layer 2": {"hook_name": "model.layers.3"},
    "reads 'blocks.2.hook_mlp_out', but signals": {"hook_name": "blocks.2.hook_mlp_out"},
    "scale is not known": {"normalize": "expected_average_only_in"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_sae_that_does_not_fit_is_refused_with_both_values(tiny, save_sae, message, tmp_path):
    with pytest.raises(InputError, match=message):
        save_sae(tmp_path / "sae", **REFUSED[message]).load(tiny.model)


def test_what_an_sae_is_allowed(tiny, save_sae, tmp_path):
    renamed = save_sae(tmp_path / "renamed", model_name="Org/Other")
    assert replace(renamed, check_model=False).load(tiny.model).cfg.d_sae == 256
    silent = save_sae(tmp_path / "silent", model_name=None, hook_name=None)
    assert silent.load(tiny.model).cfg.d_sae == 256
    assert [hooked_layer(name) for name in ("blocks.7.hook_resid_pre", "layers.4")] == [6, 4]


def test_broken_sae_folders_name_the_file(tiny, tmp_path):
    folder = tmp_path / "sae"
    source = SAESource(str(folder))
    with pytest.raises(InputError, match=r"no SAE folder .* fit -c sae/topk\.yaml"):
        source.load(tiny.model)
    with pytest.raises(InputError, match="no SAE folder"):
        source.fingerprint()
    shutil.copytree(tiny.sae.path, folder)
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    whole = weights.read_bytes()
    for content in (whole[:-100], whole[:50], b"", b"not safetensors at all"):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"sae_weights\.safetensors' is broken or cut short"):
            source.load(tiny.model)
    weights.unlink()
    with pytest.raises(InputError, match=r"sae_weights\.safetensors' is missing"):
        source.load(tiny.model)
    weights.write_bytes(whole)
    settings = json.loads(config.read_text())
    for broken, message in (
        ("{", r"cfg\.json' is no JSON"),
        (json.dumps(settings | {"architecture": "no such"}), "of the kind .no such."),
        (json.dumps(settings | {"d_sae": 128}), "no SAE that sae-lens can build"),
    ):
        config.write_text(broken)
        with pytest.raises(InputError, match=message):
            source.load(tiny.model)
    config.unlink()
    with pytest.raises(InputError, match=r"cfg\.json' is missing"):
        source.load(tiny.model)


def test_unknown_releases_and_ids_list_near_names(tiny):
    with pytest.raises(InputError, match=r"no sae-lens release is called 'llama_scope_lxr_8'.*llama_scope_lxr_8x"):
        SAESource("llama_scope_lxr_8", "l0r_8x").load(tiny.model)
    with pytest.raises(
        InputError, match=r"no SAE of release 'llama_scope_lxr_8x' is called 'l99r_8x'; near names: .*l\d+r_8x"
    ):
        SAESource("llama_scope_lxr_8x", "l99r_8x").load(tiny.model)


TEMPORAL = """
llm: {dimin: 64}
sae: {exp_factor: 4, n_heads: 2, n_attn_layers: 1, bottleneck_factor: 1, sae_diff_type: topk, kval_topk: 8,
  tied_weights: false, scaling_factor: 1.0}
data: {dtype: float32}
"""
USELESS = {
    ("gemma-scope-2b-pt-att-canonical", "layer_0/width_16k/canonical"): r"reads 'blocks\.0\.attn\.hook_z', but signals",
    ("gemma-scope-2b-pt-mlp-canonical", "layer_0/width_16k/canonical"): r"reads 'blocks\.0\.hook_mlp_out', but signals",
    ("gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76"): "of the kind 'jumprelu_transcoder'",
    ("temporal-sae-gemma-2-2b", "blocks.12.hook_resid_post"): "of the kind 'temporal'",
    ("qwen-scope-3-8b-base-w64k-l50", "layer0"): "reads 4096 numbers a token, but .* stream of 64",
}


@pytest.mark.parametrize(("release", "sae_id"), USELESS)
def test_releases_of_no_use_are_refused_before_their_weights_are_downloaded(
    tiny, monkeypatch, tmp_path, release, sae_id
):
    (tmp_path / "conf.yaml").write_text(TEMPORAL)

    def download(repo_id, filename, **settings):
        assert filename.endswith("conf.yaml"), f"{filename} would be downloaded"
        return str(tmp_path / "conf.yaml")

    monkeypatch.setattr("sae_lens.loading.pretrained_sae_loaders.hf_hub_download", download)
    with pytest.raises(InputError, match=USELESS[release, sae_id]):
        SAESource(release, sae_id).load(tiny.model)


@pytest.mark.parametrize("config", ["[]", '"text"', "3", '{"architecture": ["topk"]}'])
def test_a_configuration_of_another_form_is_no_sae(tiny, tmp_path, config):
    shutil.copytree(tiny.sae.path, tmp_path / "sae")
    (tmp_path / "sae/cfg.json").write_text(config)
    with pytest.raises(InputError, match="no SAE that sae-lens can build"):
        SAESource(str(tmp_path / "sae")).load(tiny.model)


def test_no_network_is_said(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"'l0r_8x' of 'llama_scope_lxr_8x' is not on this machine.*no network"):
        SAESource("llama_scope_lxr_8x", "l0r_8x").load(tiny.model)
