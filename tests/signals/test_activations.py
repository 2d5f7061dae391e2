"""The truncated decoder gives the residual stream that the whole model has, and runs nothing behind it."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.signals.model import (
    ReadModel,
    middle_layer,
    pooled_positions,
    replaced_output,
    residual_stream,
    truncate,
)
from saerl_lightning.signals.reading import suited_forward

SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read") / "Tiny"
    return build_tiny_policy(str(folder), ["one two three four"], hidden_size=64, layers=4)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 4, 7])
    return tokens, torch.arange(9) < lengths[:, None]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_activation_is_the_hidden_state_behind_its_layer(tiny, layer):
    tokens, mask = rows()
    whole = ReadModel(str(tiny), device="cpu").load_whole()
    with torch.inference_mode():
        expected = whole(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    decoder, _ = ReadModel(str(tiny), layer, device="cpu").load()
    found = residual_stream(decoder, tokens, mask)
    torch.testing.assert_close(found[mask], expected[layer + 1][mask], atol=1e-5, rtol=1e-5)


def with_text_part(family: str) -> PreTrainedModel:
    """A random model whose configuration holds that of the text part inside itself."""
    from transformers import AutoModelForCausalLM, Gemma3Config
    from transformers.models.qwen3_5 import Qwen3_5Config

    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    picture = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {
        "gemma3": lambda: Gemma3Config(text_config=text, vision_config=picture | {"image_size": 28, "patch_size": 14}),
        "qwen3_5": lambda: Qwen3_5Config(
            text_config=text
            | {
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            }
            | {"layer_types": ["linear_attention", "full_attention"] * 2}
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(configs[family]())


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_of_a_model_that_sees_pictures_the_text_part_is_read(tiny, tmp_path, family):
    tokens, mask = rows()
    whole = with_text_part(family).eval()
    whole.save_pretrained(tmp_path / "seeing")
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "seeing")
    with torch.inference_mode():
        expected = [
            whole(input_ids=row[None, kept], output_hidden_states=True).hidden_states[2][0]
            for row, kept in zip(tokens, mask, strict=True)
        ]
    reader = ReadModel(str(tmp_path / "seeing"), 1, device="cpu")
    assert reader.config() == (1, 4, 32)
    forward = suited_forward(reader.load()[0], max_tokens=16)
    reading = forward([row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)])
    for path, alone in zip(reading.paths, expected, strict=True):
        torch.testing.assert_close(reading.hidden[path], alone, atol=1e-4, rtol=1e-4)
    seen = []
    model = reader.load_whole()
    with torch.inference_mode(), replaced_output(model, 1, lambda stream, _: seen.append(stream) or stream):
        model(input_ids=tokens[:1])
    torch.testing.assert_close(seen[0][0], expected[0], atol=1e-4, rtol=1e-4)


def test_later_layers_the_norm_and_the_head_are_never_run(tiny):
    tokens, mask = rows()
    whole = ReadModel(str(tiny), device="cpu").load_whole()
    later = [*whole.model.layers[2:], whole.model.norm, whole.lm_head]
    decoder = truncate(whole, 1)
    for module in later:
        module.register_forward_hook(lambda *_: pytest.fail("ran"))
    assert residual_stream(decoder, tokens, mask).shape == (3, 9, 64)
    assert len(decoder.layers) == 2


@pytest.mark.real
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs models/smollm2-135m: `make smollm2`")
def test_the_first_position_of_a_real_model_is_a_sink():
    """What `pooled_positions` is for: one position whose norm would drown all the others."""
    reader = ReadModel(str(SMOLLM2), device="cpu")
    assert reader.config()[0] == middle_layer(30) == 15
    decoder, tokenizer = reader.load()
    ids = torch.tensor([tokenizer("The sum of two and three is five.")["input_ids"]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    norms = residual_stream(decoder, ids, mask)[0].norm(dim=-1)
    kept = pooled_positions(mask)[0]
    assert not kept[0] and kept[1:].all()
    assert norms[0] > 20 * norms[kept].max()


def test_the_middle_is_read_where_no_layer_is_named(tiny):
    assert ReadModel(str(tiny)).config() == (2, 4, 64)
    assert ReadModel(str(tiny)).name == "tiny"


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(tiny, layer):
    with pytest.raises(InputError, match=rf"layer is {layer}(; write a whole number from 0|.*layers 0 to 3)"):
        ReadModel(str(tiny), layer).load()


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model could be read at"):
        ReadModel(str(tmp_path / "nothing")).load()
