"""The policy written by numpy alone is what transformers would have written, but for the draw of its weights."""

import json

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy, write_tiny_policy

CORPUS = ["What is 512 + 7? 519.", "Say ünïcode words."] * 5


@pytest.fixture
def written(tmp_path):
    (tmp_path / "written").mkdir()
    write_tiny_policy(tmp_path / "written", CORPUS, seed=3)
    return tmp_path / "written"


def test_it_loads_as_the_one_that_transformers_wrote(written, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    built = build_tiny_policy(str(tmp_path / "built"), CORPUS, hidden_size=64, layers=2)
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (written, built)]
    chat = [{"role": "user", "content": "What is 40 + 96, né?"}]
    for one, other in zip(*([each] for each in tokenizers), strict=True):
        ids = [each.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for each in (one, other)]
        assert ids[0] == ids[1]
        assert (one.eos_token, one.pad_token, len(one)) == (other.eos_token, other.pad_token, len(other))
    models = [AutoModelForCausalLM.from_pretrained(each) for each in (written, built)]
    shapes = [{name: tuple(each.shape) for name, each in model.named_parameters()} for model in models]
    assert shapes[0] == shapes[1]
    assert models[0].generation_config.eos_token_id == models[1].generation_config.eos_token_id
    configs = [json.loads((each / "config.json").read_text()) for each in (written, built)]
    assert configs[0].items() <= configs[1].items()
    for name, each in models[0].named_parameters():  # the same distribution: 0.05, norms 1, biases 0
        other = models[1].get_parameter(name)
        assert each.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=0.1)
        assert each.mean().item() == pytest.approx(other.mean().item(), abs=0.01)


def test_the_seed_fixes_the_weights(written, tmp_path):
    from safetensors.torch import load_file

    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        write_tiny_policy(tmp_path / str(seed), CORPUS, seed=seed)
    first, same, other = (load_file(each / "model.safetensors") for each in (written, tmp_path / "3", tmp_path / "4"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
