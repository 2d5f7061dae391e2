"""One small random policy on disk, shared by the tests of all engines; each test loads its own copy."""

import socket
from pathlib import Path

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from tests.rollout.stand_in import StandIn

CORPUS = ["What is 12 + 7? The answer is 19.", "Sort these words: pear, apple, fig.", "Count the letters in banana."]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17], [18, 19]]  # token ids


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return build_tiny_policy(str(tmp_path_factory.mktemp("policy") / "tiny"), CORPUS, seed=1)


@pytest.fixture
def stand_ins(tiny_folder):
    """Makes servers that answer like vLLM's, and closes them."""
    made = []

    def make(count=1, **settings):
        made.extend(new := [StandIn(str(tiny_folder), **settings) for _ in range(count)])
        return new

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def load_tiny(tiny_folder):
    """Loads a fresh (model, tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load():
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(tiny_folder)

    return load


class SharedServer:
    """A vLLM server with the tiny policy, started when a test asks for it: it takes a minute or more."""

    def __init__(self, model: str, logs: str) -> None:
        from saerl_lightning.rollout.serving.command import ServerNeeds, ServerOptions
        from saerl_lightning.rollout.serving.processes import ServerProcesses
        from saerl_lightning.rollout.transfer.broadcast import GlooTransfer

        self.needs = ServerNeeds(model, "float32", 256, transfer_flags=GlooTransfer().server_flags(), adapter_rank=4)
        self.options = ServerOptions(device="cpu", kv_cache_gb=0.25, max_num_seqs=32, logs=logs)
        self.processes = ServerProcesses()

    def running(self):
        """The server that runs, or a new one if a test has ended the former."""
        from saerl_lightning.rollout.serving.connection import VLLMServer
        from saerl_lightning.rollout.serving.fleet import Fleet

        if not self.processes.running or self.processes.running[0].process.poll() is not None:
            self.processes.close()
            fleet = Fleet([VLLMServer(f"http://127.0.0.1:{free_port()}")], "", 1, 5.0, 0)
            self.processes.start(fleet, self.needs, self.options)
            fleet.close()
        return self.processes.running[0]


@pytest.fixture(scope="session")
def shared_server(tiny_folder, tmp_path_factory):
    server = SharedServer(str(tiny_folder), str(tmp_path_factory.mktemp("servers")))
    yield server
    server.processes.close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
