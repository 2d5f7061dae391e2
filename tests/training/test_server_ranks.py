"""Several training processes over a real vLLM server: they take the steps of one, whatever way the weights are sent."""

from __future__ import annotations

import pytest

from saerl_lightning.rollout.serving.command import ServerNeeds, ServerOptions
from saerl_lightning.rollout.serving.connection import VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.serving.processes import ServerProcesses
from saerl_lightning.rollout.transfer.broadcast import GlooTransfer
from tests.rollout.conftest import free_port
from tests.training.test_equal_ranks import assert_equal, ran

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory) -> str:
    """Address of a server with the tiny policy, which takes weights from files and by gloo, and adapters."""
    needs = ServerNeeds(tiny, "float32", 64, transfer_flags=GlooTransfer().server_flags(), adapter_rank=4)
    logs = str(tmp_path_factory.mktemp("servers"))
    processes, fleet = ServerProcesses(), Fleet([VLLMServer(f"http://127.0.0.1:{free_port()}")], "", 1, 5.0, 0)
    try:
        processes.start(fleet, needs, ServerOptions(device="cpu", kv_cache_gb=0.125, max_num_seqs=32, logs=logs))
        yield fleet.servers[0].url
    finally:
        fleet.close()
        processes.close()


def test_processes_share_a_server(tiny, server, tmp_path, monkeypatch):
    """GRPO, and DAPO with top entropy and refills; under FSDP2 every tensor is gathered while it is broadcast.

    Sharded weights in files were equal, too; they are left out for time.
    """
    monkeypatch.setenv("SERVER", server)
    for transfer, strategy in (("files", "one"), ("files", "ddp"), ("gloo", "sharded")):
        ran(tiny, tmp_path, transfer, strategy)
    for one in tmp_path.glob("*-files-one.*"):
        one.with_name(one.name.replace("files", "gloo")).symlink_to(one)
    assert_equal(tmp_path, "files", "ddp", tiny)
    assert_equal(tmp_path, "gloo", "sharded", tiny)


def test_processes_send_adapters_alone(tiny, server, tmp_path, monkeypatch):
    """Of a LoRA policy, after the weights that they are for: the first process writes them, and all sample with them.

    Under FSDP2 each process has read its part of the base, and has drawn the adapters that one process draws.
    """
    monkeypatch.setenv("SERVER", server)
    for strategy in ("one", "ddp", "sharded"):
        ran(tiny, tmp_path, "adapters", strategy)
    for strategy in ("ddp", "sharded"):
        assert_equal(tmp_path, "adapters", strategy, tiny)
