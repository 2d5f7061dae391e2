"""A policy loaded part by part is the policy loaded whole: weights, tied head, buffers, logits and gradients, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.shard_loading import has_tensors, load_parts, load_sharded, weight_files, weightless
from tests.rollout.conftest import free_port

SCRIPT = Path(__file__).with_name("shard_loading_ranks.py")
ROOT = SCRIPT.parents[2]
SMOLLM2 = ROOT / "models/smollm2-135m"


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return build_tiny_policy(str(tmp_path_factory.mktemp("models") / "tied"), ["1 + 2 = 3"], hidden_size=64, layers=2)


@pytest.fixture(scope="module")
def untied(tied, tmp_path_factory) -> Path:
    """A head of its own, bfloat16, in several files with an index."""
    model = Policy(str(tied)).load_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    folder = tmp_path_factory.mktemp("models") / "untied"
    shutil.copytree(tied, folder)
    (folder / "model.safetensors").unlink()
    model.bfloat16().save_pretrained(folder, max_shard_size="50KB")
    return folder


def on_two(folder: Path, out: Path, lora: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What two processes have together, loaded in parts and whole."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for how in ("parts", "whole"):
        port = str(free_port())
        command = [sys.executable, str(SCRIPT), str(folder), str(out)]
        ranks = [
            subprocess.Popen([*command, rank, port, how, str(lora)], cwd=ROOT, env=environment) for rank in ("0", "1")
        ]
        assert [each.wait(300) for each in ranks] == [0, 0]
    return tuple(torch.load(out / f"{how}.pt", weights_only=True) for how in ("parts", "whole"))


def assert_same(parts: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    assert parts.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(parts[name], whole[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_two_processes_have_what_they_have_of_a_whole_model(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    assert (len(set(weight_files(str(folder)).values())) > 1) == (kind == "untied")
    parts, whole = on_two(folder, tmp_path)
    assert_same(parts, whole)
    for name in ("lm_head.weight", "buffer model.rotary_emb.inv_freq", "logits", "gradient model.embed_tokens.weight"):
        assert parts[name].float().abs().max() > 0
    facts = [json.loads((tmp_path / f"{how}-0.json").read_text()) for how in ("parts", "whole")]
    assert [(each["name"], each["eos"]) for each in facts] == [(str(folder), facts[1]["eos"])] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_two_processes_have_the_adapters_of_a_whole_model(kind, request, tmp_path):
    parts, whole = on_two(request.getfixturevalue(kind), tmp_path, lora=4)
    assert_same(parts, whole)
    trained = [name for name in parts if name.startswith("gradient")]
    assert trained and all("lora_" in name for name in trained)
    assert max(parts[name].abs().max() for name in trained if "lora_B" in name) > 0
    assert parts["base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"].abs().max() > 0


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="models/smollm2-135m is not here: make smollm2")
@pytest.mark.parametrize("lora", [0, 16])
def test_no_process_holds_the_whole_of_a_real_model(tmp_path, lora):
    """538 MB of weights on two processes: each grows by its half and a little, where it grew by all and more."""
    assert_same(*on_two(SMOLLM2, tmp_path, lora))
    grown = {
        h: [json.loads((tmp_path / f"{h}-{r}.json").read_text())["grown"] for r in (0, 1)] for h in ("parts", "whole")
    }
    print(f"peak memory grew by, KiB: {grown}")
    assert max(grown["parts"]) < 0.7 * 538_000 < 538_000 * 0.95 < min(grown["whole"])


def read(folder: Path, **settings) -> torch.nn.Module:
    """Loads in parts in one process, which has all rows."""
    with weightless():
        model = Policy(str(folder), **settings).build()
    assert all(each.is_meta for each in model.parameters()) and not any(each.is_meta for each in model.buffers())
    load_parts(model, weight_files(str(folder)), torch.device("cpu"))
    return model


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_one_process_reads_all_rows(kind, request):
    folder = request.getfixturevalue(kind)
    model, whole = read(folder), Policy(str(folder)).load_model()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "tied")
    assert_same(
        {**model.state_dict(), **dict(model.named_buffers())}, {**whole.state_dict(), **dict(whole.named_buffers())}
    )


def changed(tied: Path, folder: Path, change) -> Path:
    shutil.copytree(tied, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(NORM),
        lambda weights: weights.update(other=torch.ones(2)),
        lambda weights: weights.update({NORM: torch.ones(3)}),
    ],
    ids=["missing", "unknown", "other shape"],
)
def test_what_is_not_just_the_models_tensors_is_loaded_whole(tied, tmp_path, change):
    """Loading whole knows how to convert older names, and how to refuse."""
    folder = changed(tied, tmp_path / "changed", change)
    with weightless():
        model = Policy(str(tied)).build()
    assert has_tensors(model, weight_files(str(tied))) and not has_tensors(model, weight_files(str(folder)))
    assert load_sharded(Policy(str(folder)), print, torch.device("cpu")) is None


def test_other_files_are_loaded_whole(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert weight_files(str(tmp_path)) == {}


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_adapters_are_drawn_as_for_a_whole_model(kind, request):
    """The base's tensors are frozen and tied as they were, and the adapters are in float32 beside bfloat16 too."""
    policy = Policy(str(request.getfixturevalue(kind)), "bfloat16", LoRA(rank=3), gradient_checkpointing=True)
    torch.manual_seed(7)
    whole = policy.load_model()
    torch.manual_seed(7)
    parts = load_sharded(policy, lambda model: None, torch.device("cpu"))
    assert parts is not None
    assert_same(parts.state_dict(), whole.state_dict())
    assert [(n, p.dtype, p.requires_grad) for n, p in parts.named_parameters()] == [
        (n, p.dtype, p.requires_grad) for n, p in whole.named_parameters()
    ]
    base = parts.get_base_model()
    assert (base.lm_head.weight is base.model.embed_tokens.weight) == (kind == "tied")
    for model in (parts, whole):
        model(torch.arange(5, 25)[None]).logits.float().square().mean().backward()
    grown = [{n: p.grad for n, p in model.named_parameters() if p.grad is not None} for model in (parts, whole)]
    assert grown[0] and all("lora_" in name for name in grown[0])
    assert_same(*grown)


@pytest.fixture
def cached(tied, tmp_path, monkeypatch) -> Path:
    """The snapshot of owner/tiny in a cache of the hub, which can't be reached."""
    import transformers.utils.hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for module, name in ((constants, "HF_HUB_CACHE"), (transformers.utils.hub, "HF_HUB_CACHE")):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, str(tmp_path))
    place = tmp_path / "models--owner--tiny"
    shutil.copytree(tied, place / "snapshots/abc")
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    return place / "snapshots/abc"


def test_a_cached_hub_name_is_read_from_its_snapshot(cached):
    assert {each.parent for each in weight_files("owner/tiny").values()} == {cached}
    parts, whole = load_sharded(Policy("owner/tiny"), print, torch.device("cpu")), Policy("owner/tiny").load_model()
    assert parts is not None and parts.name_or_path == whole.name_or_path == "owner/tiny"
    assert_same(parts.state_dict(), whole.state_dict())
    assert parts.generation_config.to_dict() == whole.generation_config.to_dict()
    assert weight_files("owner/other") == weight_files("no/such/folder") == {}
    (cached / "model.safetensors").unlink()  # a download that was broken off
    assert weight_files("owner/tiny") == {}


def test_a_part_that_is_no_number_is_refused(tied, tmp_path):
    folder = changed(tied, tmp_path / "nan", lambda weights: weights[NORM].fill_(float("nan")))
    with pytest.raises(InputError, match=r"model.safetensors' has NaN or infinity in model\.norm\.weight"):
        read(folder)
