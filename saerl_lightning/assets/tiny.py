"""Builds a policy with about a million random parameters, for demos, tests and benchmarks without a download.

The weights are random, and the tokenizer is trained on the given corpus only. Train the policy first (SFT).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lightning.files import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_policy(
    folder: str,
    corpus: Iterable[str],
    hidden_size: int = 128,
    layers: int = 4,
    vocab_size: int = 512,
    seed: int = 0,
) -> Path:
    """Writes a small random Qwen2 policy with a byte-level tokenizer as a Hugging Face folder.

    Args:
        folder: Folder for the policy, missing or empty.
        corpus: Texts that the tokenizer's merges are learned from.
        hidden_size: Width of the residual stream, a multiple of 32.
        layers: Number of transformer blocks.
        vocab_size: Upper bound of the vocabulary: 256 bytes, 3 special tokens, and the merges that the corpus allows.
        seed: Seed of the initial weights.

    Returns:
        The folder.

    Raises:
        InputError: if the folder is not empty.
    """
    with whole_folder(Path(folder)) as staged:
        tokenizer = _train_tokenizer(corpus, vocab_size)
        tokenizer.save_pretrained(staged)
        _random_model(tokenizer, hidden_size, layers, seed).save_pretrained(staged)
    return Path(folder)


def _train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns byte-level BPE merges. Each digit is a separate token, so that arithmetic can be learned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _random_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    """Initialises the weights from their own random stream, without changing the global random state."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ids = tokenizer.get_vocab()
    end, pad = ids[END], ids[END_OF_TEXT]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=max(1, hidden_size // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        # The usual 0.02 suits widths in the thousands. At this width it would make the residual stream too small.
        initializer_range=0.05,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    return model
