"""Sizes of a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3), read from its configuration: its weights and its cache.

Letters: d width of the stream, H query heads, K key heads, D width of a head, f width of the MLP, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")  # `model_type` of the configurations that are understood


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a Llama-like decoder.

    Args:
        layers: Number of layers.
        stream: Width of the residual stream, d.
        heads: Number of query heads, H.
        key_heads: Number of key and value heads, K.
        width: Width of a head, D.
        inner: Width of the MLP, f.
        vocabulary: Number of tokens that have a logit, V.
        tied: Whether the output head is the embedding.
        biases: Names of the projections that have a bias.
        head_norms: Whether queries and keys are normed.
    """

    layers: int
    stream: int
    heads: int
    key_heads: int
    width: int
    inner: int
    vocabulary: int
    tied: bool
    biases: tuple[str, ...] = ()
    head_norms: bool = False

    @classmethod
    def of(cls, config: Any) -> DecoderSizes | None:
        """Reads the sizes from a configuration of transformers; None if it is not of a Llama-like model."""
        kind = getattr(config, "model_type", None)
        if kind not in LLAMA_LIKE:
            return None
        biases = ("q", "k", "v") if kind == "qwen2" else ()
        if getattr(config, "attention_bias", False):
            biases = ("q", "k", "v", "o")
        if getattr(config, "mlp_bias", False):
            biases += ("gate", "up", "down")
        return cls(
            layers=config.num_hidden_layers,
            stream=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            biases=biases,
            head_norms=kind == "qwen3",
        )

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Numbers of inputs and outputs of a layer's projections."""
        d, queries, keys, f = self.stream, self.heads * self.width, self.key_heads * self.width, self.inner
        return {
            "q": (d, queries),
            "k": (d, keys),
            "v": (d, keys),
            "o": (queries, d),
            "gate": (d, f),
            "up": (d, f),
            "down": (f, d),
        }

    @property
    def matrices(self) -> int:
        """Numbers in the projections of all layers, without biases."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear.values())

    @property
    def embedding(self) -> int:
        """Numbers in the embedding, and in the output head."""
        return self.vocabulary * self.stream

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a tied output head counts once."""
        biases = sum(self.linear[name][1] for name in self.biases)
        norms = 2 * self.stream + (2 * self.width if self.head_norms else 0)
        return self.matrices + self.layers * (biases + norms) + self.stream + self.embedding * (1 if self.tied else 2)

    def adapted(self, targets: str | list[str]) -> list[str]:
        """Projections of a layer that LoRA's targets name: "all-linear", a list of module names, or a pattern."""
        module = {
            name: f"{'mlp' if name in ('gate', 'up', 'down') else 'self_attn'}.{name}_proj" for name in self.linear
        }
        if targets == "all-linear":
            return list(module)
        if isinstance(targets, str):
            return [name for name, path in module.items() if re.fullmatch(targets, f"model.layers.0.{path}")]
        return [name for name, path in module.items() if any(f".{path}".endswith(f".{target}") for target in targets)]

    def adapters(self, rank: int, targets: str | list[str]) -> int:
        """Numbers in LoRA's two factors of every adapted projection."""
        return self.layers * sum(rank * sum(self.linear[name]) for name in self.adapted(targets))

    def cache(self, positions: int, number_bytes: int) -> int:
        """Bytes of the keys and values of some positions: 2 K D numbers a layer."""
        return number_bytes * positions * self.layers * 2 * self.key_heads * self.width
