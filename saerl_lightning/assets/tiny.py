"""Builds a policy with about a million random parameters, for demos, tests and benchmarks without a download.

The weights are random, and the tokenizer is trained on the given corpus only. Train the policy first (SFT).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning.files import whole_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_policy(
    folder: str | Path,
    corpus: Iterable[str],
    hidden_size: int = 128,
    layers: int = 4,
    vocab_size: int = 512,
    seed: int = 0,
    replace: bool = False,
) -> Path:
    """Writes a small random Qwen2 policy with a byte-level tokenizer as a Hugging Face folder.

    Args:
        folder: Folder for the policy, missing or empty unless `replace` is true.
        corpus: Texts that the tokenizer's merges are learned from.
        hidden_size: Width of the residual stream, a multiple of 32.
        layers: Number of transformer blocks.
        vocab_size: Upper bound of the vocabulary: 256 bytes, 3 special tokens, and the merges that the corpus allows.
        seed: Seed of the initial weights.
        replace: Whether to replace the folder, as where a notebook's cell is run again.

    Returns:
        The folder.

    Raises:
        InputError: if the folder is not empty and `replace` is false.
    """
    with whole_folder(Path(folder), replace) as staged:
        tokenizer = _train_tokenizer(corpus, vocab_size)
        tokenizer.save_pretrained(staged)
        _random_model(tokenizer, hidden_size, layers, seed).save_pretrained(staged)
    return Path(folder)


def write_tiny_policy(
    folder: Path, corpus: Iterable[str], hidden_size: int = 64, layers: int = 2, vocab_size: int = 512, seed: int = 0
) -> None:
    """Writes such a policy by numpy alone, within a second: importing torch and transformers takes longer.

    Args:
        folder: Empty folder that the files are written to.
        corpus: Texts that the tokenizer's merges are learned from.
        hidden_size: Width of the residual stream, a multiple of 32.
        layers: Number of transformer blocks.
        vocab_size: Upper bound of the vocabulary.
        seed: Seed of the initial weights; they differ from those of `build_tiny_policy`.
    """
    import numpy as np
    from safetensors.numpy import save_file

    bpe = _train_bpe(corpus, vocab_size)
    bpe.save(str(folder / "tokenizer.json"))
    settings = _settings(bpe.get_vocab(), hidden_size, layers)
    end, pad = settings["eos_token_id"], settings["pad_token_id"]
    _write_json(folder / "config.json", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **settings})
    _write_json(folder / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad})
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END_OF_TEXT}
    _write_json(folder / "tokenizer_config.json", {**tokenizer, "chat_template": CHAT_TEMPLATE})
    rng, scale = np.random.default_rng(seed), settings["initializer_range"]
    weights = {}
    for name, shape in _shapes(settings):
        if len(shape) == 2:
            weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        else:
            weights[name] = np.full(shape, 1.0 if "norm" in name else 0.0, dtype=np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _shapes(settings: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Qwen2's tensors, the head tied to the embeddings."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    keys = width * settings["num_key_value_heads"] // settings["num_attention_heads"]
    yield "model.embed_tokens.weight", (settings["vocab_size"], width)
    for layer in range(settings["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", keys), ("v", keys)):
            yield f"{block}.self_attn.{name}_proj.weight", (rows, width)
            yield f"{block}.self_attn.{name}_proj.bias", (rows,)
        yield f"{block}.self_attn.o_proj.weight", (width, width)
        yield f"{block}.mlp.gate_proj.weight", (inner, width)
        yield f"{block}.mlp.up_proj.weight", (inner, width)
        yield f"{block}.mlp.down_proj.weight", (width, inner)
        yield f"{block}.input_layernorm.weight", (width,)
        yield f"{block}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _train_bpe(corpus: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns byte-level BPE merges. Each digit is a separate token, so that arithmetic can be learned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return bpe


def _train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    bpe = _train_bpe(corpus, vocab_size)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _settings(vocabulary: dict[str, int], hidden_size: int, layers: int) -> dict[str, Any]:
    """The part of a Qwen2's config that differs from its defaults."""
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": max(1, hidden_size // 64),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END_OF_TEXT],
        # The usual 0.02 suits widths in the thousands. At this width it would make the residual stream too small.
        "initializer_range": 0.05,
        "dtype": "float32",
    }


def _random_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    """Initialises the weights from their own random stream, without changing the global random state."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**_settings(tokenizer.get_vocab(), hidden_size, layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[config.eos_token_id, config.pad_token_id], pad_token_id=config.pad_token_id
    )
    return model
