import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError

CORPUS = ["What is 512 + 7? 519.", "Say ünïcode words."] * 5


def test_the_folder_loads_and_reads_digits_one_by_one(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = torch.get_rng_state()
    folder = build_tiny_policy(str(tmp_path / "tiny"), CORPUS)
    assert torch.get_rng_state().equal(before)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 1.3e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert tokenizer.tokenize("4096")[:] == ["4", "0", "9", "6"]
    text = "never séen: 3×7 \n\t日本"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "2?"}]
    expected = "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == expected


def test_the_seed_fixes_the_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    folders = [build_tiny_policy(str(tmp_path / str(i)), CORPUS, layers=1, seed=s) for i, s in enumerate((0, 0, 1))]
    first, same, other = (AutoModelForCausalLM.from_pretrained(f).model.embed_tokens.weight for f in folders)
    assert first.equal(same)
    assert not first.equal(other)


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        build_tiny_policy(str(tmp_path / "mine"), CORPUS)

    def broken():
        yield "a text"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        build_tiny_policy(str(tmp_path / "new"), broken())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
