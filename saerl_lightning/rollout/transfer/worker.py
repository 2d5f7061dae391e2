"""Worker: what vLLM's worker processes get by `--worker-extension-cls`: a probe of files, and weights over gloo."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch


class Worker:
    """Says whether a server sees a file that the trainer wrote. vLLM adds its methods to its own worker's."""

    def read_probe(self, path: str) -> str:
        """Reads a probe of FileTransfer; "" if it is not there. No other file is read.

        Args:
            path: Path of the file.
        """
        probe = Path(path)
        return probe.read_text(errors="replace")[:64] if probe.name == "probe" and probe.is_file() else ""


def register_gloo() -> None:
    """Makes the transfer `gloo` known to vLLM, with the messages of vLLM's own `nccl`."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from saerl_lightning.rollout.transfer.broadcast import gloo_broadcast, gloo_group

    @dataclass
    class GlooMeeting(WeightTransferInitInfo):
        master_address: str
        master_port: int
        rank_offset: int
        world_size: int
        limit_s: float = 600.0

    @dataclass
    class GlooAnnounced(WeightTransferUpdateInfo):
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]

    class GlooReceiver(WeightTransferEngine[GlooMeeting, GlooAnnounced]):
        init_info_cls, update_info_cls = GlooMeeting, GlooAnnounced
        group = None

        def init_transfer_engine(self, init_info: GlooMeeting) -> None:
            own = self.parallel_config
            rank = init_info.rank_offset + own.data_parallel_index * own.world_size + own.rank
            where = init_info.master_address, init_info.master_port
            self.group = gloo_group(*where, rank, init_info.world_size, init_info.limit_s)

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: GlooAnnounced) -> None:
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                gloo_broadcast(self.group, tensor)
                self.model.load_weights([(name, tensor)])  # pyright: ignore[reportCallIssue]

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            self.group = None

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", GlooReceiver)


# Only where vLLM itself imports this module, in its workers.
if "vllm.v1.worker.worker_base" in sys.modules:
    register_gloo()
