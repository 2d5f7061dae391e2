"""Estimates the hours and memory of training an SAE: a model is read up to its middle layer, and the SAE descends.

Nothing is run: numbers of operations from the sizes, rates as inputs, each printed with its source. Reading and training take
turns on each GPU; processes share the text, so that hours fall with their number but for the sums of gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields

from gpus import MODELS

from saerl_lightning.policy.decoder_sizes import DecoderSizes

SIZES = MODELS | {"SmolLM2-135M": DecoderSizes(30, 576, 9, 3, 64, 1536, 49_152, True)}


COUNTS = ("epochs", "expansion", "context", "read_bytes", "gpus")  # whole numbers


@dataclass(frozen=True)
class Setting:
    """What is trained, and the rates."""

    tokens: float = 100e6
    epochs: int = 1
    expansion: int = 8
    context: int = 1024
    buffer_tokens: float = 1_048_576
    read_bytes: int = 2
    gpus: int = 1
    read_tflops: float = 989
    train_tflops: float = 67
    read_share: float = 0.4
    train_share: float = 0.5


SOURCES = {
    "tokens": "of the text",
    "epochs": "each reads the text again, unless data.cache keeps it",
    "expansion": "features a dimension",
    "context": "longest text, in tokens; on average a position attends to half of it",
    "buffer_tokens": "data.buffer_tokens",
    "read_bytes": "2: the model is read in bfloat16; 4: in float32",
    "gpus": "processes",
    "read_tflops": "H100 SXM, dense bf16: NVIDIA's data sheet",
    "train_tflops": "H100 SXM, float32: NVIDIA's data sheet; the SAE is trained in float32",
    "read_share": "share that reading reaches: assumed",
    "train_share": "share that training reaches: assumed",
}


def read_flops(sizes: DecoderSizes, setting: Setting) -> float:
    """Operations a token up to the middle layer: two a weight, and attention."""
    layers = sizes.layers // 2 + 1
    attention = 4 * sizes.heads * sizes.width * setting.context / 2
    return layers * (2 * sizes.matrices / sizes.layers + attention)


def train_flops(sizes: DecoderSizes, setting: Setting) -> float:
    """Operations a position of an SAE with dense products: encoder and decoder, forward and twice as much backward."""
    return 3 * 2 * 2 * sizes.stream * setting.expansion * sizes.stream


def hours(sizes: DecoderSizes, setting: Setting) -> tuple[float, float]:
    """Hours of reading and of training, on all processes together."""
    passes = setting.tokens * setting.epochs / setting.gpus / 3600
    read = read_flops(sizes, setting) / (setting.read_tflops * 1e12 * setting.read_share)
    train = train_flops(sizes, setting) / (setting.train_tflops * 1e12 * setting.train_share)
    return passes * read, passes * train


def memory(sizes: DecoderSizes, setting: Setting) -> dict[str, float]:
    """GB of each process: text, buffer, model (loaded whole, then cut), and SAE with gradients and Adam's states."""
    weights = 2 * sizes.stream * setting.expansion * sizes.stream
    return {
        "text": 4 * setting.tokens / 1e9,
        "buffer": setting.buffer_tokens / setting.gpus * sizes.stream * setting.read_bytes / 1e9,
        "model": sizes.parameters * setting.read_bytes / 1e9,
        "SAE": 16 * weights / 1e9,
    }


def page(model: str, setting: Setting) -> Iterator[str]:
    """The inputs with their sources, hours and memory."""
    sizes = SIZES[model]
    yield f"ESTIMATE of an SAE of {setting.expansion * sizes.stream:,} features at the middle of {model}; inputs:"
    for each in fields(setting):
        yield f"- {each.name} = {getattr(setting, each.name):g}: {SOURCES[each.name]}"
    read, train = hours(sizes, setting)
    rate = setting.tokens * setting.epochs / (read + train) / 3600
    yield f"reading {read:.2f} h + training {train:.2f} h = {read + train:.2f} h, {rate:,.0f} tokens/s; without validation"
    held = memory(sizes, setting)
    parts = ", ".join(f"{name} {size:.1f}" for name, size in held.items())
    yield f"memory of each process: {sum(held.values()):.1f} GB ({parts}), beside libraries and one batch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen2.5-1.5B", choices=list(SIZES))
    for each in fields(Setting):
        kind = int if each.name in COUNTS else float
        parser.add_argument(
            f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help=SOURCES[each.name]
        )
    given = vars(parser.parse_args())
    print("\n".join(page(given["model"], Setting(**{each.name: given[each.name] for each in fields(Setting)}))))


if __name__ == "__main__":
    main()
