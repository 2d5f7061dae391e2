"""Simulates a GRPO step on 8 to 512 GPUs: colocated on all of them, or split into samplers and trainers.

A model of rates, not a measurement (nothing is run): every rate is an input (`--mfu 0.3`), and is printed with its
source. Fixed work a GPU (`--prompts`, `--group`), lengths of completions log-normal with the same seed everywhere.
Colocated: all GPUs sample, wake and sleep the sampler, then train. Split: some sample and some train, one after the
other (alternating), or at the same time, with the batch one step old (look-ahead); the best split into whole replicas
is taken. The ideal step is all work at the printed rates on all GPUs without a wait; efficiency is its time over the
step's. Sampling and training in turn on all GPUs, or at once on parts of them, have the same ideal: look-ahead gains
over alternating on the same split, and over colocation only what that loses.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from gpus import MODELS as SMALLER
from gpus import QKV

from saerl_lightning.policy.decoder_sizes import DecoderSizes

# From the config.json that each model is published with.
MODELS = {name: SMALLER[name] for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B")} | {
    "Qwen2.5-32B": DecoderSizes(64, 5120, 40, 8, 128, 27_648, 152_064, False, QKV),
    "Llama-3.1-70B": DecoderSizes(80, 8192, 64, 8, 128, 28_672, 128_256, False),
}
NODE = 8  # GPUs of a machine

SOURCES = {
    "tflops": "H100 SXM, dense bf16: NVIDIA's data sheet",
    "hbm_tb": "H100 SXM, TB/s: NVIDIA's data sheet",
    "memory_gb": "H100 SXM: NVIDIA's data sheet",
    "network_gb": "GB/s a GPU between machines: DGX H100, one 400 Gb/s port a GPU (data sheet)",
    "host_gb": "GB/s between GPU and host: PCIe 5 x16 has 64 (specification); assumed 55",
    "mfu": "share of tflops in training: 0.38 to 0.43 reported for Llama 3 on 8,192 and 16,384 H100 (arXiv 2407.21783)",
    "read_share": "share of hbm_tb that decoding reaches: assumed",
    "prefill_share": "share of tflops that prefill and large decode batches reach: assumed",
    "step_ms": "fixed time of a decode step (launches, scheduler): assumed",
    "http_ms": "client's time a completion: the goal of issue 15; benchmarks/server_client.py measures it on a CPU",
    "wake_s": "waking and sleeping a colocated sampler, beside copying its weights: assumed",
    "kv_share": "share of a sampler's memory for weights and cache: vLLM's default gpu_memory_utilization",
    "kv_colocated": "the same beside a sharded trainer: assumed",
}


@dataclass(frozen=True)
class Rates:
    """What a GPU, the network and the software do in a second."""

    tflops: float = 989
    hbm_tb: float = 3.35
    memory_gb: float = 80
    network_gb: float = 50
    host_gb: float = 55
    mfu: float = 0.4
    read_share: float = 0.6
    prefill_share: float = 0.5
    step_ms: float = 5
    http_ms: float = 2
    wake_s: float = 1
    kv_share: float = 0.9
    kv_colocated: float = 0.5


@dataclass(frozen=True)
class Work:
    """Prompts a GPU and step, completions a prompt, tokens of a prompt, and of completions: mean, spread, limit."""

    prompts: int = 16
    group: int = 8
    prompt_tokens: int = 512
    mean_tokens: int = 2048
    spread: float = 0.6
    max_tokens: int = 8192


@dataclass(frozen=True)
class Step:
    """Seconds of a step."""

    sample: float
    train: float
    between: float
    seconds: float
    samplers: int


@cache
def lengths(work: Work, rows: int) -> np.ndarray:
    """Tokens of the completions: log-normal around the mean, cut at the limit."""
    drawn = np.random.default_rng(0).lognormal(np.log(work.mean_tokens) - work.spread**2 / 2, work.spread, rows)
    return np.clip(drawn, 1, work.max_tokens).astype(int)


def cache_bytes(sizes: DecoderSizes) -> int:
    """Bytes of keys and values a token, in bf16."""
    return 2 * sizes.layers * 2 * sizes.key_heads * sizes.width


def shards(sizes: DecoderSizes, rates: Rates, share: float) -> int:
    """GPUs of a replica: the fewest whose memory holds the weights twice, so that half is left for the cache."""
    count = 1
    while count < NODE and 2 * 2 * sizes.parameters > count * share * rates.memory_gb * 1e9:
        count *= 2
    return count


def decode_seconds(sizes: DecoderSizes, rates: Rates, gpus: int, rows: int, context: float) -> float:
    """One decode step of a replica: reading weights and cache, or multiplying, whichever takes longer."""
    read = (2 * sizes.parameters + rows * context * cache_bytes(sizes)) / (
        gpus * rates.hbm_tb * 1e12 * rates.read_share
    )
    multiply = 2 * sizes.parameters * rows / (gpus * rates.tflops * 1e12 * rates.prefill_share)
    return max(read, multiply) + rates.step_ms / 1e3


def sampling(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int, prompts: int, share: float) -> float:
    """Seconds until the last completion of the slowest replica is done, with continuous batching."""
    own = shards(sizes, rates, share)
    replicas = max(1, gpus // own)
    rows = lengths(work, max(1, -(-prompts // replicas)) * work.group)
    room = own * share * rates.memory_gb * 1e9 - 2 * sizes.parameters
    slots = max(1, int(room / (cache_bytes(sizes) * (work.prompt_tokens + work.mean_tokens))))
    tokens = len(rows) // work.group * work.prompt_tokens
    prefill = 2 * sizes.parameters * tokens / (own * rates.tflops * 1e12 * rates.prefill_share)
    return prefill + _decoded(sizes, work, rates, own, rows, slots)


def _decoded(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int, rows: np.ndarray, slots: int) -> float:
    left, running, step, seconds = rows.tolist(), [], 0, 0.0
    while left or running:
        while left and len(running) < slots:
            heapq.heappush(running, step + left.pop())
        # Until the next row ends, the batch is the same; its rows are at half of their length, on average.
        ends = running[0]
        context = work.prompt_tokens + work.mean_tokens / 2
        seconds += (ends - step) * decode_seconds(sizes, rates, gpus, len(running), context)
        step = ends
        while running and running[0] == step:
            heapq.heappop(running)
    return seconds


def fits(sizes: DecoderSizes, rates: Rates, gpus: int, beside: float) -> bool:
    """Whether the trainer's 16 bytes a weight, sharded, and 12 GB of activations leave a share of the memory free."""
    return 16 * sizes.parameters / gpus + 12e9 <= (1 - beside) * rates.memory_gb * 1e9


def training(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int, prompts: int) -> float:
    """Seconds of forward and backward with recomputed activations; shards are gathered behind them, or take longer."""
    tokens = prompts * (work.prompt_tokens + work.group * int(lengths(work, 4096).mean()))
    multiply = 8 * sizes.parameters * tokens / (gpus * rates.tflops * 1e12 * rates.mfu)
    passes = max(1, round(tokens / gpus / 16_384))
    link = rates.network_gb if gpus > NODE else 9 * rates.network_gb  # NVLink: 450 GB/s one way
    return max(multiply, passes * 3 * 2 * sizes.parameters / (link * 1e9))


def colocated(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int) -> Step | None:
    """All GPUs sample, then all train."""
    if not fits(sizes, rates, gpus, 0.0):
        return None
    prompts = work.prompts * gpus
    sample = sampling(sizes, work, rates, gpus, prompts, rates.kv_colocated)
    train = training(sizes, work, rates, gpus, prompts)
    own = shards(sizes, rates, rates.kv_colocated)
    # The trainer's shards go to the host and back while the sampler has the memory, and the sampler gets new weights.
    moved = 2 * 16 * sizes.parameters / gpus / (rates.host_gb * 1e9) if not fits(sizes, rates, gpus, 0.5) else 0.0
    between = rates.wake_s + moved + 2 * sizes.parameters / own / (rates.network_gb * 1e9)
    return Step(sample, train, between, sample + train + between, gpus)


def split(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int, ahead: bool) -> Step | None:
    """Some GPUs sample, the others train: the fastest of the splits into whole replicas."""
    own = shards(sizes, rates, rates.kv_share)
    each = max(own, gpus // 32)
    made = (_split(sizes, work, rates, gpus, count, ahead) for count in range(each, gpus, each))
    return min((step for step in made if step is not None), key=lambda step: step.seconds, default=None)


def _split(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int, samplers: int, ahead: bool) -> Step | None:
    trainers = gpus - samplers
    if not fits(sizes, rates, trainers, 0.0):
        return None
    prompts = work.prompts * gpus
    http = prompts * work.group / trainers * rates.http_ms / 1e3
    sample = sampling(sizes, work, rates, samplers, prompts, rates.kv_share) + http
    train = training(sizes, work, rates, trainers, prompts)
    sync = 2 * sizes.parameters / (rates.network_gb * 1e9)  # a broadcast, bound by one port
    return Step(sample, train, sync, (max(sample, train) if ahead else sample + train) + sync, samplers)


def ideal(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int) -> float:
    """Seconds of all work at the printed rates with full batches on all GPUs, without tail, wait or transfer."""
    own = shards(sizes, rates, rates.kv_share)
    room = own * rates.kv_share * rates.memory_gb * 1e9 - 2 * sizes.parameters
    rows = max(1, int(room / (cache_bytes(sizes) * (work.prompt_tokens + work.mean_tokens))))
    one = decode_seconds(sizes, rates, own, rows, work.prompt_tokens + work.mean_tokens / 2) / rows * own
    prompts = work.prompts * gpus
    decoded = prompts * work.group * float(lengths(work, 4096).mean()) * one / gpus
    prefill = 2 * sizes.parameters * prompts * work.prompt_tokens / (gpus * rates.tflops * 1e12 * rates.prefill_share)
    tokens = prompts * (work.prompt_tokens + work.group * int(lengths(work, 4096).mean()))
    return decoded + prefill + 8 * sizes.parameters * tokens / (gpus * rates.tflops * 1e12 * rates.mfu)


def table(work: Work, rates: Rates, sizes_of: tuple[str, ...], counts: tuple[int, ...]) -> Iterator[str]:
    """Rows of models and GPUs, in Markdown."""
    columns = (
        "model",
        "GPUs",
        "ideal, s",
        "colocated, s: sample + train + between",
        "efficiency",
        "split, alternating, s",
        "efficiency",
        "look-ahead, s (samplers)",
        "efficiency",
        "look-ahead gains on alternating, on colocated",
    )
    yield f"| {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * (len(columns) - 1)
    for name in sizes_of:
        for gpus in counts:
            yield f"| {name} | {gpus} | " + " | ".join(_cells(MODELS[name], work, rates, gpus)) + " |"


def _cells(sizes: DecoderSizes, work: Work, rates: Rates, gpus: int) -> Iterator[str]:
    best, one = ideal(sizes, work, rates, gpus), colocated(sizes, work, rates, gpus)
    two, three = (split(sizes, work, rates, gpus, ahead) for ahead in (False, True))
    yield f"{best:.0f}"
    yield f"{one.seconds:.0f}: {one.sample:.0f} + {one.train:.0f} + {one.between:.1f}" if one else "does not fit"
    yield f"{best / one.seconds:.0%}" if one else ""
    yield f"{two.seconds:.0f}" if two else "does not fit"
    yield f"{best / two.seconds:.0%}" if two else ""
    yield f"{three.seconds:.0f} ({three.samplers})" if three else "does not fit"
    yield f"{best / three.seconds:.0%}" if three else ""
    gains = [f"{other.seconds / three.seconds:.2f}" if three and other else "–" for other in (two, one)]
    yield ", ".join(gains)


def sync_table(rates: Rates) -> Iterator[str]:
    """Bytes of a weight sync, counted from the sizes, and seconds over one port."""
    yield "| model | weights, bf16, GB | sync over one port, s |"
    yield "| --- | ---: | ---: |"
    for name, sizes in MODELS.items():
        size = 2 * sizes.parameters / 1e9
        yield f"| {name} | {size:.2f} | {size / rates.network_gb:.2f} |"


ASSUMED = """Assumed beside them: weights and cache in bf16; AdamW in float32, sharded over all trainers (16 bytes a
weight), and 12 GB of activations; recomputed activations (8 FLOP a weight and token); shards gathered behind the
computation; replicas of the fewest GPUs whose weights leave half of the memory; no dynamic sampling, no grading beyond
sampling; no stragglers but long completions, no contention, no failures: so more GPUs with as much work for each cost
nothing here, and do in a real run."""
CONCLUSION = """Look-ahead trains on completions that are one step old. Its ideal is that of colocation: sampling for g
and training for t seconds on all GPUs takes g + t, and so does the best split of them at work at once. What it gains
on colocation is what colocation loses here: the idle tail, less memory for the cache, waking."""


def page(work: Work, rates: Rates, names: tuple[str, ...], counts: tuple[int, ...]) -> str:
    """The rates with their sources, the work, and the tables."""
    rows = lengths(work, 4096)
    return "\n".join(
        [
            "SIMULATED: a model of rates, nothing was run. Rates and where they are from:",
            *(f"- {each.name} = {getattr(rates, each.name):g}: {SOURCES[each.name]}" for each in fields(rates)),
            ASSUMED,
            f"Work a GPU and step: {work.prompts} prompts of {work.prompt_tokens} tokens, {work.group} completions each, of "
            f"{rows.mean():.0f} tokens on average, half above {np.median(rows):.0f}, 1 % above "
            f"{np.quantile(rows, 0.99):.0f}.",
            "",
            *table(work, rates, names, counts),
            "",
            *sync_table(rates),
            "",
            CONCLUSION,
        ]
    )


def main() -> None:
    """Prints the page for the rates and the work of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in (Rates, Work):
        for each in fields(kind):
            told = SOURCES.get(each.name, "part of the work (see Work)")
            parser.add_argument(
                f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default, help=told
            )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    given = vars(parser.parse_args())
    rates = Rates(**{each.name: given[each.name] for each in fields(Rates)})
    work = Work(**{each.name: given[each.name] for each in fields(Work)})
    print(page(work, rates, tuple(given["models"]), tuple(given["gpus"])))


if __name__ == "__main__":
    main()
