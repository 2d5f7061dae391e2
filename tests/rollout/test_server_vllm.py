"""ServerEngine and its transfers against a real vLLM server: syncs that are right, and faults that are named."""

import os
import signal
import time

import pytest
import torch

from saerl_lightning.errors import RunStopped
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.transfer.broadcast import GlooTransfer
from saerl_lightning.rollout.transfer.file_transfer import FileTransfer
from saerl_lightning.rollout.transfer.transfer import WeightTransfer
from saerl_lightning.training.guard import MismatchGuard
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPTS = [[7 + i, 9, 11, 40 + i] for i in range(4)]
SAMPLING = Sampling(group_size=4, max_tokens=12, seed=5)


def moved(model, seed: int):
    """The model with other weights, so that a stale server would be far off."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return model


def compared(model, rollouts) -> tuple:
    with torch.no_grad():
        policy, _ = score(model.eval(), rollouts.tokens, rollouts.mask)
    return policy, rollouts.logprobs, rollouts.mask


def engine(url: str, transfer: WeightTransfer | None = None, **options) -> ServerEngine:
    return ServerEngine([url], transfer=transfer, timeout_s=options.pop("timeout_s", 300.0), **options)


def test_gloo_sends_what_files_send(shared_server, load_tiny):
    """Twice each, with small files and chunks, so that there are several; samples are equal token by token."""
    sampled = {}
    for name, transfer in {"file": FileTransfer(file_gb=1e-4), "gloo": GlooTransfer(chunk_gb=1e-4)}.items():
        model, tokenizer = load_tiny()
        with engine(shared_server.running().server.url, transfer) as sampler:
            sampler.start(model, tokenizer, 64)
            for version in (1, 2):
                sampler.load_weights(moved(model, version).state_dict().items(), version)
                rollouts = sampler.generate(PROMPTS, SAMPLING)
                assert mismatch(*compared(model, rollouts))[1] < 1e-4
        sampled[name] = rollouts
    assert torch.equal(sampled["file"].tokens, sampled["gloo"].tokens)
    assert torch.equal(sampled["file"].logprobs, sampled["gloo"].logprobs)


def test_a_tied_head_that_is_left_out_is_seen_by_the_guard(shared_server, load_tiny):
    model, tokenizer = load_tiny()
    with engine(shared_server.running().server.url) as sampler:
        sampler.start(model, tokenizer, 64)
        sampler.load_weights(model.state_dict().items(), 1)
        moved(model, 3)
        sampler.load_weights(model.named_parameters(), 2)  # names the tied head once, as the embedding
        with pytest.raises(RunStopped, match="the tied output head was not sent"):
            MismatchGuard().check(*compared(model, sampler.generate(PROMPTS, SAMPLING)), torch.float32)
        sampler.load_weights(model.state_dict().items(), 3)
        MismatchGuard().check(*compared(model, sampler.generate(PROMPTS, SAMPLING)), torch.float32)


class Noting(ServerEngine):
    """Notes which versions of adapters it sent."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sent = []

    def load_adapters(self, folder, version):
        self.sent.append(version)
        super().load_adapters(folder, version)


def test_adapters_alone_train_what_merged_weights_train(shared_server, tiny_folder, load_tiny, tmp_path):
    """Three steps, each judged by the guard; the server has another run's weights before."""
    url, trained = shared_server.running().server.url, {}
    for alone in (True, False):
        model, tokenizer = load_tiny()
        with engine(url) as sampler:
            sampler.start(model, tokenizer, 64)
            sampler.load_weights(moved(model, 7).state_dict().items(), 1)
        sampler = Noting([url], timeout_s=300.0, adapters=alone)
        policy = Policy(str(tiny_folder), lora=LoRA(rank=4))
        torch.manual_seed(0)  # for the adapters
        run = fit(module(str(tiny_folder), policy=policy, engine=sampler), data(), trainer(tmp_path, 3))
        assert sampler.sent == ([1, 2, 3, 4] if alone else [])
        assert run.trainer.callback_metrics["sampler/mismatch_max"] < 1e-4
        trained[alone] = weights(run)
    apart = largest_difference(trained[True], trained[False])
    print(f"adapters alone and merged weights: largest weight difference {apart:.2g}")
    assert apart < 2e-6
    assert max(each.abs().max() for name, each in trained[True].items() if "lora_B" in name) > 1e-3


class LostFiles(FileTransfer):
    """Deletes the files before the server reads them."""

    def send(self, named_tensors, fleet):
        for _ in named_tensors:
            pass
        fleet.each("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "/nowhere/at/all"}})


def test_a_server_that_failed_to_load_is_named_though_it_goes_on_answering(shared_server, load_tiny):
    running = shared_server.running()
    url = running.server.url
    model, tokenizer = load_tiny()
    with engine(url, LostFiles()) as sampler:
        sampler.start(model, tokenizer, 64)
        with pytest.raises(RunStopped, match=rf"no vLLM server is left: {url} answered /collective_rpc with 500"):
            sampler.load_weights(model.state_dict().items(), 1)
    assert running.process.poll() is None
    shared_server.processes.close()  # it would die at the next request


def test_a_server_that_is_killed_while_it_samples_stops_the_run(shared_server, load_tiny):
    running = shared_server.running()
    url = running.server.url
    model, tokenizer = load_tiny()
    with engine(url, timeout_s=60.0) as sampler:
        sampler.start(model, tokenizer, 256)
        sampler.load_weights(model.state_dict().items(), 1)
        parts = sampler.stream(PROMPTS * 16, Sampling(group_size=8, max_tokens=200))
        next(parts)
        os.killpg(running.process.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RunStopped, match=f"no vLLM server is left: {url} can't be reached"):
            list(parts)
        assert time.monotonic() - began < 60
