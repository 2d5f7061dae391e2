"""Estimates the memory of a run from its settings and its model's configuration, before weights are loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning

from saerl_lightning import hub
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json
from saerl_lightning.policy.decoder_sizes import DecoderSizes
from saerl_lightning.policy.memory import (
    FLOAT32,
    EngineMemory,
    MemoryEstimate,
    StepSetting,
    decoding,
    estimate,
)
from saerl_lightning.policy.scoring import KEPT_BYTES, TILE_BYTES
from saerl_lightning.ranks.sharded import ShardedStrategy
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.vllm import CPU_CACHE_GB, VLLMEngine
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.sae import CodeSignals
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.optimization import states_of_a_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Strategies that are understood: whole weights, gradients and optimiser states on each rank, or a share of all three.
UNDERSTOOD = ("SingleDeviceStrategy", "DDPStrategy", "ShardedStrategy")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """Where a step takes place.

    Args:
        device: Type of the device, `cpu` or `cuda`.
        ranks: Number of processes.
        precision: Precision of the trainer, such as `bf16-mixed`.
        card_bytes: Memory of a GPU in bytes; null if it is not known.
        shards: Whether the processes share out the policy; otherwise each holds it whole.
        whole_gradients: Whether processes that share out the policy keep whole gradients until a step's last micro-batch.
    """

    device: str
    ranks: int
    precision: str
    card_bytes: int | None = None
    shards: bool = False
    whole_gradients: bool = False

    @classmethod
    def of(cls, trainer: lightning.Trainer, device: str, ranks: int, card_bytes: int | None) -> Machine:
        """Takes precision and strategy from a trainer.

        Args:
            trainer: Trainer of the run.
            device: Type of the device, `cpu` or `cuda`.
            ranks: Number of processes.
            card_bytes: Memory of a GPU in bytes; null if it is not known.
        """
        strategy = trainer.strategy
        shards = isinstance(strategy, ShardedStrategy)
        whole = shards and strategy.gradients == "last"
        return cls(device, ranks, trainer.precision, card_bytes, shards, whole)


def needed_memory(
    model: lightning.LightningModule, datamodule: lightning.LightningDataModule, trainer: lightning.Trainer
) -> MemoryEstimate | None:
    """Estimates the memory of each rank of a GRPO run.

    Args:
        model: Module whose settings are read; its weights are not.
        datamodule: Datamodule of which batch size, longest prompt and signals are read.
        trainer: Trainer that gives precision, strategy, device and number of ranks.

    Returns:
        The estimate; None for other modules, models that are not Llama-like and other strategies, and where a
        configuration can't be read.
    """
    if not isinstance(model, GRPOModule) or not isinstance(datamodule, PromptDataModule):
        return None
    if type(trainer.strategy).__name__ not in UNDERSTOOD:
        return None
    machine = Machine.of(trainer, trainer.strategy.root_device.type, trainer.world_size, _card_bytes())
    try:
        sizes = policy_sizes(model)
        if sizes is None:
            return None
        step = step_setting(model, datamodule, machine)
        engine = engine_memory(model.engine, sizes, step, machine.device, machine.card_bytes)
        if engine is None:
            return None
        libraries = _resident_bytes() if machine.device == "cpu" else 0
        return replace(estimate(sizes, step, engine, *signal_bytes(datamodule)), libraries=libraries)
    # Whatever is wrong with a setting or a file is told where it is used.
    except (InputError, OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def engine_memory(
    engine: RolloutEngine, sizes: DecoderSizes, step: StepSetting, device: str, card_bytes: int | None
) -> EngineMemory | None:
    """Estimates the memory of the shipped engines; None for another class, or vLLM's share of an unknown card.

    Args:
        engine: Engine that samples.
        sizes: Sizes of the policy.
        step: Step whose rows are sampled.
        device: Type of the device, `cpu` or `cuda`.
        card_bytes: Memory of the GPU in bytes; null if it is not known.
    """
    if isinstance(engine, HFEngine):
        fused = engine.fused and not step.mixed and (step.lora is None or step.weight_bytes == FLOAT32)
        return decoding(sizes, step, engine.max_rows, fused, copies_head=device == "cpu")
    if isinstance(engine, ServerEngine):  # on GPUs of its own
        return EngineMemory(0, 0)
    if not isinstance(engine, VLLMEngine):
        return None
    weights = sizes.parameters * (step.compute_bytes if engine.dtype == "auto" else BYTES[engine.dtype])
    cache_gb = CPU_CACHE_GB if device == "cpu" and engine.kv_cache_gb is None else engine.kv_cache_gb
    if cache_gb is not None:
        cache = int(cache_gb * 2**30)
    elif card_bytes is None:
        return None
    else:
        cache = max(0, int(engine.gpu_memory_utilization * card_bytes) - weights)
    sleeps = engine.sleep_level > 0 and device != "cpu"
    return EngineMemory(weights, cache, frees_weights=sleeps, frees_cache=sleeps)


def policy_sizes(model: GRPOModule) -> DecoderSizes | None:
    """Reads the policy's sizes from its configuration; None if it is not Llama-like."""
    return DecoderSizes.of(_config(model.policy.path, model.policy.trust_remote_code))


def step_setting(model: GRPOModule, datamodule: PromptDataModule, machine: Machine) -> StepSetting:
    """Gathers what a step does on one rank from the settings.

    Args:
        model: Module of the run.
        datamodule: Datamodule of the run.
        machine: Where the step takes place.
    """
    policy, shortcuts = model.policy, model.shortcuts
    kind = "cpu" if machine.device == "cpu" else "cuda"
    return StepSetting(
        prompts=max(1, datamodule.batch_size // machine.ranks),
        group_size=model.sampling.group_size,
        prompt_tokens=datamodule.chat.max_prompt_tokens,
        completion_tokens=model.sampling.max_tokens,
        micro_tokens=model.micro_tokens,
        weight_bytes=BYTES[policy.dtype],
        mixed="mixed" in machine.precision,
        states=states_of_a_weight(model.optimizer),
        lora=None if policy.lora is None else (policy.lora.rank, policy.lora.targets),
        checkpointing=policy.gradient_checkpointing,
        reference=model.objective.needs_reference,
        shared_prefix=shortcuts.shared_prefix,
        lean_layers=shortcuts.lean_layers,
        tiled_head=shortcuts.tiled_head,
        tile_bytes=TILE_BYTES[kind],
        kept_bytes=KEPT_BYTES[kind],
        copies=machine.ranks > 1 and not machine.shards,
        shards=machine.ranks if machine.shards else 1,
        whole_gradients=machine.whole_gradients,
    )


def signal_bytes(datamodule: PromptDataModule) -> tuple[int, int]:
    """Counts bytes of the model that is read for signals, and of the SAE; 0 where there is none.

    The whole model is loaded before it is cut behind the layer that is read.
    """
    signals = datamodule.signals
    read = getattr(signals, "model", None)
    if not isinstance(signals, CodeSignals | HiddenSignals) or not isinstance(read, ReadModel):
        return 0, 0
    sizes = DecoderSizes.of(_config(read.path, read.trust_remote_code))
    if sizes is None:
        return 0, 0
    return sizes.parameters * BYTES[read.dtype], _sae_bytes(signals)


def _sae_bytes(signals: CodeSignals | HiddenSignals) -> int:
    """Bytes of an SAE in a local folder: encoder and decoder of d_in x d_sae in float32."""
    sae = getattr(signals, "sae", None)
    folder = Path(getattr(sae, "path", None) or "")
    if sae is None or not (folder / "cfg.json").is_file():
        return 0
    written = read_json(folder / "cfg.json", "the SAE's configuration")
    return FLOAT32 * 2 * int(written["d_in"]) * int(written["d_sae"])


def _config(path: str, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    hub.look_up(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def _resident_bytes() -> int:
    """Bytes that this process holds already, libraries above all; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _card_bytes() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
