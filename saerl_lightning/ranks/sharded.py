"""ShardedStrategy: shards weights, gradients and optimiser state over the processes (FSDP2), checkpoints included.

On a CPU two processes were found equal to one; memory, speed and NCCL on GPUs were not tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Positive, require_in_range

OTHER_SHARDS = ("FSDPStrategy", "DeepSpeedStrategy")
POINTED = ".shards"  # ending of the folders that checkpoints point to


class ShardedStrategy(ModelParallelStrategy):
    """Shards weights, gradients and optimiser state over all processes; each layer is gathered while it is used (FSDP2).

    Checkpoints are folders, with a part a process; `validate`, `predict` and `export` read them on one process too. There
    is no tensor parallelism. The engine must not sample from the policy's own modules, as HFEngine does.

    Args:
        gradients: When the processes add their gradients: `each` after every micro-batch, so that none holds whole
            gradients; `last` once a step, which sends less and holds whole gradients meanwhile.
        process_group_backend: Backend of the process group; null takes nccl on GPUs and gloo on a CPU.
        timeout_minutes: Minutes that a process waits for the others in a collective.
    """

    def __init__(
        self,
        gradients: Literal["each", "last"] = "each",
        process_group_backend: str | None = None,
        timeout_minutes: Positive = 30.0,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.gradients = gradients
        self.timeout_minutes = timeout_minutes
        require_in_range(self)

    def setup_environment(self) -> None:
        """Puts all processes into one data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keeps gradients whole and unsynchronised inside the block, if they are added once a step."""
        self._synchronise(self.gradients == "each")
        try:
            yield
        finally:
            self._synchronise(True)

    def _synchronise(self, on: bool) -> None:
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(self.model, nn.Module)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(on, recurse=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Writes a folder beside the checkpoint, renames it, and lets the checkpoint point to it: a kill harms neither."""
        path = Path(self.broadcast(str(filepath)))
        staged = path.with_name(f".{path.name}.writing")
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staged, ignore_errors=True)  # of a killed process
        self.barrier()
        super().save_checkpoint({**checkpoint, "processes": self.world_size}, staged, storage_options)
        self.barrier()
        if self.is_global_zero:
            point(path, staged, int(checkpoint.get("global_step", 0)))
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads each process's part.

        Raises:
            InputError: if the checkpoint is of another model, or training goes on from one that is not sharded.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        fitting = self.lightning_module is not None and self.lightning_module.trainer.training
        if fitting and not (path / "meta.pt").is_file():
            raise InputError(
                f"'{path}' is not sharded, and its optimiser can't be loaded into shards; go on with --trainer.strategy ddp, "
                "or begin a new run from its weights: export it, and write --model.policy.path FOLDER"
            )
        if (path / "meta.pt").is_file():
            assert isinstance(self.model, nn.Module)
            require_same_shapes(path, dict(self.model.state_dict()))
        return super().load_checkpoint(path, weights_only)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Removes the folder that a checkpoint points to, and the pointer."""
        if self.is_global_zero:
            remove(Path(filepath))


StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all processes", override=True)


def require_strategy(trainer: lightning.Trainer, samples_by_policy: bool) -> None:
    """Refuses strategies under which the policy's weights can't be read, and what can't work over shards.

    Args:
        trainer: Trainer with its strategy.
        samples_by_policy: Whether the engine samples by the policy's own modules.

    Raises:
        InputError: with the strategy, engine or precision to write.
    """
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    if name in OTHER_SHARDS or (
        isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ShardedStrategy)
    ):
        raise InputError(
            f"trainer.strategy is {name}, whose weights no engine can get; write --trainer.strategy sharded, "
            "which shards over all processes without tensor parallelism, or ddp"
        )
    if not isinstance(strategy, ShardedStrategy):
        return
    if samples_by_policy:
        raise InputError(
            "the engine samples by the policy's own modules, of which ShardedStrategy leaves each process a part; write "
            "--model.engine VLLMEngine, or --trainer.strategy ddp"
        )
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise InputError(f"trainer.precision is {trainer.precision}; under ShardedStrategy write bf16-mixed or 32-true")


def point(path: Path, staged: Path, step: int) -> None:
    """Renames a written folder, lets the checkpoint point to it by one rename, and deletes what it pointed to before.

    Args:
        path: Path of the checkpoint.
        staged: Folder that was written beside it.
        step: Number of optimiser steps, for the folder's name.
    """
    former = path.parent / path.readlink() if path.is_symlink() else None
    names = (f"{path.stem}-{step:06d}{again}{POINTED}" for again in ("", "b"))
    folder = next(path.with_name(name) for name in names if former is None or name != former.name)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
    if path.exists() and not path.is_symlink():
        remove(path)
    pointer = path.with_name(f".{path.name}.pointer")
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(folder.name, target_is_directory=True)
    pointer.replace(path)
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)


def remove(path: Path) -> None:
    """Deletes a checkpoint: a pointer with its folder, a folder, or a file."""
    if path.is_symlink():
        shutil.rmtree(path.parent / path.readlink(), ignore_errors=True)
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_same_shapes(path: Path, own: Mapping[str, Any]) -> None:
    """Refuses a sharded checkpoint of another model, before any weight is loaded.

    Args:
        path: Folder of the checkpoint.
        own: Weights of this run's module by name.

    Raises:
        InputError: naming the first weight that differs.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    kept = FileSystemReader(path).read_metadata().state_dict_metadata
    saved = {
        name.removeprefix("state_dict."): tuple(about.size)  # pyright: ignore[reportAttributeAccessIssue]
        for name, about in kept.items()
        if name.startswith("state_dict.")
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for name in sorted(saved.keys() | shapes.keys()):
        if saved.get(name) != shapes.get(name):
            trained_from = torch.load(path / "meta.pt", weights_only=True).get("policy", {}).get("path")
            raise InputError(
                f"the checkpoint is of another model: it was trained from '{trained_from}', and {name} is "
                f"{saved.get(name, 'missing')} there and {shapes.get(name, 'missing')} here; give the policy (and lora) it "
                "was trained with"
            )
