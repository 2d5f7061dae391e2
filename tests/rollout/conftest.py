"""One small random policy on disk, shared by the tests of all engines; each test loads its own copy."""

import socket
from pathlib import Path

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy

CORPUS = ["What is 12 + 7? The answer is 19.", "Sort these words: pear, apple, fig.", "Count the letters in banana."]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17], [18, 19]]  # token ids


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return build_tiny_policy(str(tmp_path_factory.mktemp("policy") / "tiny"), CORPUS, seed=1)


@pytest.fixture(scope="session")
def load_tiny(tiny_folder):
    """Loads a fresh (model, tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load():
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(tiny_folder)

    return load


@pytest.fixture(scope="session")
def vllm_server(tiny_folder, tmp_path_factory):
    """The address of a vLLM server with the tiny policy, one for all tests: it takes a minute or more to start."""
    from saerl_lightning.rollout.serving.command import ServerNeeds, ServerOptions
    from saerl_lightning.rollout.serving.processes import started_servers
    from saerl_lightning.rollout.transfer.file_transfer import FileTransfer

    needs = ServerNeeds(str(tiny_folder), "float32", 256, transfer_flags=FileTransfer().server_flags())
    options = ServerOptions(
        device="cpu", kv_cache_gb=0.25, max_num_seqs=32, logs=str(tmp_path_factory.mktemp("servers"))
    )
    with started_servers([f"http://127.0.0.1:{free_port()}"], needs, options) as (url,):
        yield url


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
