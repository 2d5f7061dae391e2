"""Code that a model folder brings along runs when the command line says so, and never because a file does."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.tools.export import export

CODE = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
Path({mark!r}).write_text("ran")
class PlantedConfig(Qwen2Config):
    model_type = "planted"
class PlantedModel(Qwen2ForCausalLM):
    config_class = PlantedConfig
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return build_tiny_policy(
        str(tmp_path_factory.mktemp("tiny") / "policy"), ["what is 1 + 1?"], hidden_size=32, layers=1
    )


@pytest.fixture
def planted(tmp_path, tiny) -> Path:
    """The tiny policy as a folder whose code leaves a mark when it runs."""
    folder = Path(shutil.copytree(tiny, tmp_path / "planted"))
    (folder / "planted.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.PlantedModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "planted", "auto_map": classes}))
    return folder


@pytest.fixture
def checkpoint(tmp_path, tiny, planted) -> Path:
    """A checkpoint of the tiny policy that names the planted folder, and wants its code run."""
    weights = {f"model.{name}": tensor for name, tensor in Policy(str(tiny)).load_model().state_dict().items()}
    noted = {"path": str(planted), "dtype": "float32", "lora": None, "trust_remote_code": True}
    noted |= {"gradient_checkpointing": False, "attention": "sdpa"}
    torch.save({"state_dict": weights, "policy": noted}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_export_runs_no_code_that_a_checkpoint_names(tmp_path, checkpoint, planted):
    with pytest.raises(InputError, match=r"write --policy PATH .*the checkpoint says .*planted"):
        export(str(checkpoint), str(tmp_path / "hf"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "hf").exists()


def test_export_runs_no_code_of_a_named_folder_unasked(tmp_path, checkpoint, planted):
    with pytest.raises(InputError, match="planted"):
        export(str(checkpoint), str(tmp_path / "hf"), policy=str(planted))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "hf").exists()


def test_export_takes_the_weights_of_the_checkpoint_and_the_folder_of_the_command_line(tmp_path, checkpoint, tiny):
    export(str(checkpoint), str(tmp_path / "hf"), policy=str(tiny))
    assert not (tmp_path / "mark").exists()
    made, start = (Policy(str(each)).load_model().state_dict() for each in (tmp_path / "hf", tiny))
    assert all(torch.equal(made[name], start[name]) for name in start)


def test_planted_code_runs_if_trust_remote_code_is_given(tmp_path, checkpoint, planted):
    export(str(checkpoint), str(tmp_path / "hf"), policy=str(planted), trust_remote_code=True)
    assert (tmp_path / "mark").read_text() == "ran"


# -- folders that are none ---------------------------------------------------------------------------------------------


def damaged(folder: Path, name: str) -> Path:
    (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_tokenizer_is_refused(tmp_path, tiny, name):
    folder = damaged(Path(shutil.copytree(tiny, tmp_path / "torn")), name)
    with pytest.raises(InputError, match=r"no tokenizer could be loaded from policy.path") as refused:
        Policy(str(folder)).load_tokenizer()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_torn_model_is_refused(tmp_path, tiny, name):
    folder = damaged(Path(shutil.copytree(tiny, tmp_path / "torn")), name)
    with pytest.raises(InputError, match=r"no model could be loaded from policy.path") as refused:
        Policy(str(folder)).load_model()
    assert "\n" not in str(refused.value)


def test_an_unknown_target_of_adapters_is_refused_with_those_there_are(tiny):
    with pytest.raises(InputError, match=r"policy.lora.targets is \['qq_proj'\], which no layer is called; .*'q_proj'"):
        Policy(str(tiny), lora=LoRA(targets=["qq_proj"])).load_model()


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_9"])
def test_an_attention_that_is_not_there_is_refused(tiny, attention):
    with pytest.raises(InputError, match=f"FlashAttention2|{attention}"):
        Policy(str(tiny), attention=attention).load_model()
