"""ServerEngine sends the adapters of a LoRA policy alone, after the weights that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.weights import base_model, save_adapters
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.transfer.broadcast import GlooTransfer
from saerl_lightning.rollout.transfer.file_transfer import FileTransfer
from tests.rollout.stand_in import StandIn

PROMPTS = [[20 + i, 5] for i in range(4)]
SAMPLING = Sampling(group_size=2, max_tokens=3, seed=4)
LOAD, UNLOAD, GENERATE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/inference/v1/generate"


@pytest.fixture
def started(tiny_folder, tmp_path):
    """Starts an engine with a LoRA policy over stand-ins; yields it, and a function that sends the next adapters."""
    engines = []

    def start(servers, rank=4, **options):
        policy = Policy(str(tiny_folder), lora=LoRA(rank=rank))
        model = policy.load_model()
        options = {"transfer": FileTransfer(str(tmp_path / "weights")), "timeout_s": 5.0, **options}
        engine = ServerEngine([each.url for each in servers], **options)
        engines.append(engine)
        engine.start(base_model(model), policy.load_tokenizer(), 64)

        def send(version: int) -> None:
            save_adapters(model, tmp_path / "adapters")
            engine.load_adapters(tmp_path / "adapters", version)

        return engine, send

    yield start
    for each in engines:
        each.close()


def asked(server: StandIn) -> list[str]:
    """Routes in their order, without those that only look."""
    return [path for path, body in server.asked if body and path != GENERATE]


def test_the_weights_go_once_and_then_the_adapters_alone_under_a_new_name_each_time(stand_ins, started, tmp_path):
    (server,) = stand_ins()
    engine, send = started([server])
    assert engine.takes_adapters
    for version in (1, 2):
        send(version)
        assert not server.paused
        rollouts = engine.generate(PROMPTS, SAMPLING)
        assert (rollouts.weight_version == version).all()
        (name,) = server.adapters
        assert {body["model"] for path, body in server.asked[-4:] if path == GENERATE} == {name}
        assert [each.name for each in Path(server.adapters[name]).parent.iterdir()] == [name]
    version, weights = "/update_weight_version", "/collective_rpc"
    assert asked(server) == [weights, version, LOAD, version, LOAD, UNLOAD, version]
    sent = [body["lora_name"] for path, body in server.asked if path == LOAD and body]
    assert len(set(sent)) == 2
    engine.close()
    assert server.adapters == {} and server.version == "default"
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_server_that_has_forgotten_the_adapters_leaves_its_prompts_to_the_others(stand_ins, started):
    first, second = stand_ins(2)
    engine, send = started([first, second])
    send(1)
    first.adapters.clear()
    assert len(engine.generate(PROMPTS, SAMPLING).texts) == 8
    assert sorted(second.prompts()) == [20, 21, 22, 23]
    second.adapters.clear()
    with pytest.raises(RunStopped, match=r"no vLLM server is left: .* with 404: 'The model .* was it restarted\?"):
        engine.generate(PROMPTS, SAMPLING)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((500, '{"error": {"message": "no"}}'), r"answered /v1/load_lora_adapter with 500: 'no'"),
        ((200, "perhaps"), r"did not say that it has taken the adapters \(it said 'perhaps'\)"),
    ],
    ids=["500", "no success"],
)
def test_a_server_that_does_not_take_them_is_given_up(stand_ins, started, fault, said):
    first, second = stand_ins(2)
    engine, send = started([first, second])
    first.faults[LOAD] = lambda body, number: fault
    send(1)
    assert len(engine.generate(PROMPTS, SAMPLING).texts) == 8 and first.prompts() == []
    second.faults[LOAD] = lambda body, number: fault
    with pytest.raises(RunStopped, match=f"no vLLM server is left: .*{said}"):
        send(2)


@pytest.mark.parametrize(
    ("rank", "settings", "faults", "said"),
    [
        (16, {}, {}, "takes adapters up to rank 8, and the run's have 16 (engine.adapters false"),
        (4, {"lora_config": None}, {}, "takes adapters up to rank 0, and the run's have 4"),
        (4, {}, {LOAD: lambda body, number: (404, "{}")}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 opens it"),
    ],
    ids=["rank", "no adapters", "no route"],
)
def test_a_server_without_room_or_route_for_them_is_refused_with_the_command(
    stand_ins, started, rank, settings, faults, said
):
    (server,) = stand_ins()
    server.settings.update(settings)
    server.faults = faults
    with pytest.raises(InputError) as error:
        started([server], rank)
    command = str(error.value).partition("; start it with: ")[2]
    assert said in str(error.value)
    assert f"--enable-lora --max-loras 1 --max-lora-rank {max(rank, 8)}" in command
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in command
    engine, _ = started([server], rank, adapters=False)
    assert not engine.takes_adapters


def test_a_transfer_without_files_sends_merged_weights(tiny_folder):
    engine = ServerEngine(transfer=GlooTransfer())
    needs = [each.needs(str(tiny_folder), torch.float32, 64, rank=4) for each in (engine, ServerEngine())]
    assert [each.adapter_rank for each in needs] == [0, 4]
