"""Estimates the memory of a GRPO step before it runs, from a model's configuration alone, part by part, in bytes.

The model is a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3). Parts are counted from what each file keeps:
`prefix_attention`, `lean_layers` and `scoring` for the backward pass, `rollout.fused` for decoding. Worst cases are taken:
every prompt and completion as long as allowed, and every row trained on. Libraries, allocator and CUDA context are not
counted.

Letters: d width of the stream, H query heads, K key heads, D width of a head, f width of the MLP, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from saerl_lightning.policy.decoder_sizes import DecoderSizes

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class StepSetting:
    """What a GRPO step of this config does on one rank.

    Args:
        prompts: Number of prompts of a step on this rank.
        group_size: Number of completions of a prompt.
        prompt_tokens: Largest length of a prompt, in tokens.
        completion_tokens: Largest length of a completion, in tokens.
        micro_tokens: Largest number of tokens of a micro-batch.
        weight_bytes: Bytes of a number of the weights: 4 float32, 2 bfloat16.
        mixed: Whether products are computed in 16 bits with float32 weights (bf16-mixed, 16-mixed).
        states: Numbers that the optimiser keeps for each trained number; AdamW 2.
        lora: Rank and targets of the adapters; null trains all weights.
        checkpointing: Whether activations of a layer are computed again in the backward pass.
        reference: Whether a second copy of the weights is kept for the KL term.
        shared_prefix: Whether a prompt is computed once a group.
        lean_layers: Whether norms and MLPs keep less for the backward pass.
        tiled_head: Whether logits are computed in tiles.
        tile_bytes: Bytes of the logits of a tile.
        kept_bytes: Most bytes of probabilities that are kept for the backward pass.
        copies: Whether gradients stand twice: in their own tensors, and in DDP's buckets.
        shards: Number of ranks that share out weights, gradients and the optimiser's states (FSDP2); 1 holds them whole.
        whole_gradients: Whether ranks that share out the rest keep whole gradients until a step's last micro-batch.
    """

    prompts: int
    group_size: int
    prompt_tokens: int
    completion_tokens: int
    micro_tokens: int
    weight_bytes: int = FLOAT32
    mixed: bool = False
    states: float = 2
    lora: tuple[int, str | list[str]] | None = None
    checkpointing: bool = False
    reference: bool = False
    shared_prefix: bool = True
    lean_layers: bool = True
    tiled_head: bool = True
    tile_bytes: int = 2**25
    kept_bytes: int = 2**28
    copies: bool = False
    shards: int = 1
    whole_gradients: bool = False

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number that a product gives."""
        return 2 if self.mixed else self.weight_bytes

    @property
    def group_tokens(self) -> int:
        """Tokens of a group as it goes through the policy."""
        prompts = 1 if self.shared_prefix else self.group_size
        return prompts * self.prompt_tokens + self.group_size * self.completion_tokens

    @property
    def tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return min(self.micro_tokens, self.prompts * self.group_tokens)

    @property
    def one_batch(self) -> bool:
        """Whether all rows of the step fit into one micro-batch."""
        return self.prompts * self.group_tokens <= self.micro_tokens

    @property
    def scored(self) -> int:
        """Completion tokens of the largest micro-batch."""
        return self.tokens * self.group_size * self.completion_tokens // self.group_tokens

    @property
    def keys(self) -> int:
        """Keys of the largest micro-batch: all tokens', and with a shared prompt a copy of prompt and own a completion."""
        row = self.prompt_tokens + self.completion_tokens
        copied = self.group_size * row if self.shared_prefix else 0
        return self.tokens + self.tokens * copied // self.group_tokens


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of the engine.

    Args:
        weights: Copy of the policy's weights that the engine decodes with.
        cache: Key-value cache, and the logits that are sampled from.
        frees_weights: Whether the copy is freed while the policy is updated.
        frees_cache: Whether the cache is freed while the policy is updated.
    """

    weights: int = 0
    cache: int = 0
    frees_weights: bool = True
    frees_cache: bool = True


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, by part. Parts are not all held at once: `sampling`, `updating` and `reading` are sums in time.

    Args:
        weights: Weights of the policy, with adapters, and what stands beside them while they are used: copies in 16 bits
            under mixed precision, or the layers that were gathered from shards.
        reference: Second copy of the weights for the KL term.
        gradients: Gradients of the trained weights.
        optimiser: States of the optimiser.
        activations: What a micro-batch keeps for the backward pass, and the work of one layer.
        head: Logits and kept probabilities of a micro-batch.
        engine: The engine's own weights.
        kv_cache: The engine's keys and values, and its logits.
        read_model: Model whose hidden states are read for signals.
        sae: Sparse autoencoder of the signals.
        sampling: Most that is held while completions are sampled.
        updating: Most that is held while the policy is updated.
        libraries: What the process held before, libraries above all, on a CPU; 0 does not count them.
    """

    weights: int
    reference: int
    gradients: int
    optimiser: int
    activations: int
    head: int
    engine: int
    kv_cache: int
    read_model: int
    sae: int
    sampling: int
    updating: int
    libraries: int = 0

    @property
    def reading(self) -> int:
        """Bytes that are held while signals are read, before the policy is loaded."""
        return self.read_model + self.sae

    @property
    def total(self) -> int:
        """Most bytes that are held at any time."""
        return self.libraries + max(self.sampling, self.updating, self.reading)

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by part, without the sums."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("sampling", "updating")
        }

    def __str__(self) -> str:
        """Writes a line with the total, and a line of the parts that are there; in MB if it is less than a GB."""
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        phases = {"updating": self.updating, "sampling": self.sampling, "reading signals": self.reading}
        said = ", ".join(f"{phase} {_short((held + self.libraries) / unit)}" for phase, held in phases.items() if held)
        parts = ", ".join(
            f"{part.replace('_', ' ')} {_short(held / unit)}" for part, held in self.parts.items() if held
        )
        total = _short(self.total / unit)
        counted = "libraries included" if self.libraries else "libraries not counted"
        return f"memory: at most about {total} {name} a rank ({said}), {counted}\n  in {name}: {parts}"


def activations(sizes: DecoderSizes, step: StepSetting) -> int:
    """Bytes that the layers keep for the backward pass of the largest micro-batch, and the work of one layer.

    A lean layer keeps, for each token: the inputs of its two norms (2 d, float32 under mixed precision), the inputs of its
    projections (2 d + H D + f), queries and the attention's result (2 H D), gate and up (2 f), and 2 K D for each key.
    Under mixed precision each of the five projections behind a norm keeps its own 16-bit copy of its input. Layers that
    are not lean keep the normed stream and silu(gate) too. Checkpointing keeps the stream (d) of each layer, and one layer.
    """
    d, queries, f, b = sizes.stream, sizes.heads * sizes.width, sizes.inner, step.compute_bytes
    stream = FLOAT32 if step.mixed else step.weight_bytes
    inputs = b * ((5 if step.mixed else 2) * d + queries + f)
    adapters = 0
    if step.lora is not None:
        rank, targets = step.lora
        names = sizes.adapted(targets)
        adapters = (b if step.mixed else FLOAT32) * rank * len(names)
        if step.weight_bytes < FLOAT32 and not step.mixed:
            # Frozen projections keep nothing, and each adapter its input in float32.
            inputs = FLOAT32 * sum(sizes.linear[name][0] for name in names)
    rest = 0 if step.lean_layers else 2 * d * stream + f * b
    token = 2 * d * stream + inputs + b * (2 * queries + 2 * f) + adapters + rest
    layer = step.tokens * token + step.keys * 2 * sizes.key_heads * sizes.width * b
    # The last norm's input, and the cosines and sines of positions.
    once = step.tokens * (d * stream + 2 * sizes.width * b)
    work = 4 * step.tokens * f * b
    if step.checkpointing:
        return step.tokens * d * stream * sizes.layers + layer + once + work
    return layer * sizes.layers + once + work


def head(sizes: DecoderSizes, step: StepSetting) -> int:
    """Bytes of the output head in the largest micro-batch: kept probabilities, three tiles of work, the scored states."""
    row = FLOAT32 * sizes.vocabulary
    states = step.scored * sizes.stream * step.compute_bytes
    if not step.tiled_head:
        return states + row * (step.scored + 3 * min(1024, step.scored))
    tile = max(1, step.tile_bytes // row)
    kept = min(step.scored, tile * (step.kept_bytes // (tile * row)))
    return states + row * (kept + 3 * min(tile, step.scored))


def decoding(sizes: DecoderSizes, step: StepSetting, max_rows: int, fused: bool, copies_head: bool) -> EngineMemory:
    """Memory of `HFEngine`: fused copies of the projections, the cache of the rows that decode at once, and logits.

    Args:
        sizes: Sizes of the policy.
        step: Step whose completions are sampled.
        max_rows: Largest number of completions that are decoded at once; a group is never split.
        fused: Whether it decodes with fused copies of the weights; else the policy's forward repeats a prompt's keys.
        copies_head: Whether the output head is copied too, as on a CPU.
    """
    groups = min(step.prompts, max(1, max_rows // step.group_size))
    rows = groups * step.group_size
    prompts = groups if fused else rows
    cache = sizes.cache(prompts * step.prompt_tokens + rows * step.completion_tokens, step.compute_bytes)
    copies = step.compute_bytes * (sizes.matrices + (sizes.embedding if copies_head else 0))
    return EngineMemory(copies if fused else 0, cache + 4 * rows * sizes.vocabulary * FLOAT32)


def _in_use(sizes: DecoderSizes, step: StepSetting) -> int:
    """Bytes that stand beside the weights while products read them.

    With shards these are the layer at work and the next one, and embedding and output head, which stay gathered; otherwise
    the 16-bit copies of mixed precision.
    """
    if step.shards > 1:
        ends = sizes.embedding * (1 if sizes.tied else 2)
        return step.compute_bytes * (2 * sizes.matrices // sizes.layers + ends)
    return 2 * (sizes.matrices + sizes.embedding) if step.mixed and step.weight_bytes == FLOAT32 else 0


def estimate(
    sizes: DecoderSizes, step: StepSetting, engine: EngineMemory, read_model: int = 0, sae: int = 0
) -> MemoryEstimate:
    """Sums the parts of a step: those that stay, with the engine's while sampling, or with the backward pass's.

    In a step of one micro-batch, gradients arrive as activations are freed; with several they stand beside each other.
    Shards send the engine one whole tensor at a time, of which the embedding is the largest.
    """
    adapters = 0 if step.lora is None else sizes.adapters(*step.lora)
    trained = sizes.parameters if step.lora is None else adapters
    weights = (sizes.parameters * step.weight_bytes + adapters * FLOAT32) // step.shards
    casts, sent = _in_use(sizes, step), sizes.embedding * FLOAT32 if step.shards > 1 else 0
    gradients = trained * FLOAT32 * (2 if step.copies else 1) // step.shards
    if step.whole_gradients and not step.one_batch:
        gradients += trained * FLOAT32
    # The head's gradient is made before, and the tied embedding's after, all others.
    ends = sizes.embedding * FLOAT32 if step.lora is None else 0
    reference = weights if step.reference and step.lora is None else 0
    optimiser = int(trained * FLOAT32 * step.states) // step.shards
    lasting = weights + reference + optimiser
    kept, logits = activations(sizes, step), head(sizes, step)
    before = ends if step.one_batch and not step.copies else gradients + ends
    backward = max(casts + kept + logits + before, gradients + ends)
    asleep = (0 if engine.frees_weights else engine.weights) + (0 if engine.frees_cache else engine.cache)
    return MemoryEstimate(
        weights=weights + casts,
        reference=reference,
        gradients=gradients,
        optimiser=optimiser,
        activations=kept,
        head=logits,
        engine=engine.weights,
        kv_cache=engine.cache,
        read_model=read_model,
        sae=sae,
        sampling=lasting + engine.weights + engine.cache + sent,
        updating=lasting + backward + asleep,
    )


def _short(held: float) -> str:
    return f"{held:.2f}" if held < 9.95 else f"{held:.1f}"
