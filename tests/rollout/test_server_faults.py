"""ServerEngine against stand-in servers: what it asks for, and what it does when a server fails."""

import json
import logging
import threading
import time

import pytest
import torch

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.serving import fleet as fleet_module
from saerl_lightning.rollout.transfer.file_transfer import FileTransfer
from tests.rollout.stand_in import slowly

GENERATE = "/inference/v1/generate"
PROMPTS = [[20 + i, 5] for i in range(8)]
SAMPLING = Sampling(group_size=2, max_tokens=3, seed=4)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fleet_module, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def run(load_tiny, tmp_path):
    """Starts an engine over stand-ins and gives it weights."""
    engines = []

    def start(servers, sync=True, **options):
        model, tokenizer = load_tiny()
        engine = ServerEngine(
            [each if isinstance(each, str) else each.url for each in servers],
            **{"transfer": FileTransfer(str(tmp_path / "weights")), "timeout_s": 5.0, **options},
        )
        engines.append(engine)
        engine.start(model, tokenizer, 64)
        if sync:
            engine.load_weights(model.state_dict().items(), version=3)
        return engine

    yield start
    for each in engines:
        each.close()


def own_rows(rollouts) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollouts.tokens, rollouts.mask, strict=True)]


def expected(prompts=PROMPTS, group=2) -> list[tuple[int, int]]:
    """First token and place in its group of every completion, in the order of the prompts."""
    return [(ids[0], g) for ids in prompts for g in range(group)]


def found(rollouts) -> list[tuple[int, int]]:
    return [(row[0], row[2]) for row in own_rows(rollouts)]


def test_prompts_go_round_and_come_back_in_their_order(stand_ins, run):
    servers = stand_ins(3)
    rollouts = run(servers).generate(PROMPTS, SAMPLING)
    # Requests to one server are under way together, so they arrive in any order.
    assert [sorted(each.prompts()) for each in servers] == [[20, 23, 26], [21, 24, 27], [22, 25]]
    assert found(rollouts) == expected()
    assert (rollouts.weight_version == 3).all()
    assert rollouts.truncated.all()
    assert torch.equal(rollouts.logprobs[rollouts.mask], torch.tensor([-0.5, -1.0, -1.5]).repeat(16))


def test_a_part_is_there_before_the_last_prompt_is(stand_ins, run):
    (server,) = stand_ins()
    held = threading.Event()
    server.faults[GENERATE] = lambda body, _: held.wait(5) and None if body and body["token_ids"][0] == 27 else None
    parts = run([server], part_rows=4).stream(PROMPTS, SAMPLING)
    assert found(next(parts)) == expected(PROMPTS[:2])
    held.set()
    assert [found(part) for part in parts] == [expected(PROMPTS[i : i + 2]) for i in (2, 4, 6)]


def test_greedy_is_asked_once_and_repeated(stand_ins, run):
    (server,) = stand_ins()
    rollouts = run([server]).generate(PROMPTS[:1], Sampling(group_size=3, temperature=0, max_tokens=3))
    assert own_rows(rollouts)[0] == own_rows(rollouts)[2]
    assert [body["sampling_params"]["n"] for path, body in server.asked if path == GENERATE and body] == [1]


def test_a_server_that_dies_in_the_middle_leaves_its_prompts_to_the_others(stand_ins, run, caplog):
    first, second = stand_ins(2)

    def die(body, number):
        if body and body["token_ids"][0] == 24:
            first.dead.set()
            raise ConnectionError

    engine = run([first, second])
    first.faults[GENERATE] = die
    with caplog.at_level(logging.WARNING):
        assert found(engine.generate(PROMPTS, SAMPLING)) == expected()
    assert f"the server {first.url} can't be reached, or broke off" in caplog.text
    again = engine.generate(PROMPTS, SAMPLING)
    assert found(again) == expected()
    assert sorted(second.prompts()[-8:]) == [ids[0] for ids in PROMPTS]


def test_a_group_that_broke_off_is_asked_for_again_and_is_there_once(stand_ins, run):
    (server,) = stand_ins()

    def broken(body, number):
        if body and body["token_ids"][0] == 22 and server.prompts().count(22) == 1:
            raise ConnectionError

    engine = run([server])
    plain = engine.generate(PROMPTS, SAMPLING)
    server.faults[GENERATE] = broken
    server.asked.clear()
    assert own_rows(engine.generate(PROMPTS, SAMPLING)) == own_rows(plain)
    assert sorted(server.prompts()) == [20, 21, 22, 22, 23, 24, 25, 26, 27]


def doubled(answer, body):
    return {**answer, "choices": answer["choices"] * 2}


def of_another(answer, body):
    return {**answer, "request_id": "generate-tokens-other"}


def without_logprobs(answer, body):
    return {**answer, "choices": [{**each, "logprobs": {"content": []}} for each in answer["choices"]]}


def aborted(answer, body):
    return {**answer, "choices": [{**each, "finish_reason": "abort"} for each in answer["choices"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled, r"\[0, 0, 1, 1\] where 2 were asked for"),
        (of_another, "answered another request"),
        (without_logprobs, "without a log-probability"),
        (aborted, "ended a completion with 'abort'"),
        (lambda answer, body: {"choices": 3}, "none of vLLM's"),
    ],
    ids=["doubled", "another", "no logprobs", "aborted", "foreign"],
)
def test_what_is_no_whole_group_is_never_taken(stand_ins, run, change, said):
    (server,) = stand_ins()
    engine = run([server], retries=1)
    server.change = change
    with pytest.raises(RunStopped, match=f"(?s)given up after 2 requests: {server.url} .*{said}"):
        engine.generate(PROMPTS[:1], SAMPLING)


def test_a_run_without_a_server_left_stops_and_names_them(stand_ins, run):
    servers = stand_ins(2)
    engine = run(servers)
    for each in servers:
        each.kill()
    began = time.monotonic()
    with pytest.raises(RunStopped, match=f"no vLLM server is left: {servers[0].url} .*; {servers[1].url} "):
        engine.generate(PROMPTS, SAMPLING)
    assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_given_up_within_the_timeout(stand_ins, run):
    first, second = stand_ins(2)
    engine = run([first, second], timeout_s=1.0)
    first.faults[GENERATE] = slowly(20)
    began = time.monotonic()
    assert found(engine.generate(PROMPTS, SAMPLING)) == expected()
    assert 1 <= time.monotonic() - began < 4
    second.faults[GENERATE] = slowly(20)
    with pytest.raises(RunStopped, match=rf"(?s){second.url} gave no whole answer to {GENERATE} within 1 s"):
        engine.generate(PROMPTS, SAMPLING)
    assert time.monotonic() - began < 6


def test_prompts_that_wait_for_a_server_go_on_when_it_is_given_up(stand_ins, run):
    """They do not wait for their own timeouts."""
    first, second = stand_ins(2)
    engine = run([first, second])
    first.faults[GENERATE] = slowly(20)
    parts = engine.stream(PROMPTS, SAMPLING)
    threading.Timer(0.3, lambda: engine._fleet.give_up(engine._fleet.servers[0], "was seen to hang")).start()
    began = time.monotonic()
    assert [each for part in parts for each in found(part)] == expected()
    assert time.monotonic() - began < 3


def test_what_a_server_refuses_is_told_at_once(stand_ins, run):
    (server,) = stand_ins()
    engine = run([server])
    server.faults[GENERATE] = lambda body, _: (400, {"error": {"message": "n must be at most 1"}})
    with pytest.raises(RunStopped, match=rf"{server.url} answered {GENERATE} with 400: 'n must be at most 1'"):
        engine.generate(PROMPTS, SAMPLING)
    assert len(server.prompts()) <= len(PROMPTS)


def test_a_busy_server_is_asked_again_and_not_given_up(stand_ins, run):
    (server,) = stand_ins()
    engine = run([server])
    server.faults[GENERATE] = lambda body, _: (
        (429, "busy") if server.prompts().count(body["token_ids"][0]) < 3 else None
    )
    assert found(engine.generate(PROMPTS, SAMPLING)) == expected()


def test_leaving_in_the_middle_cancels_the_rest(stand_ins, run):
    (server,) = stand_ins()
    engine = run([server], concurrency=1, part_rows=2)
    parts = engine.stream(PROMPTS, SAMPLING)
    next(parts)
    parts.close()
    asked = len(server.prompts())
    assert asked < len(PROMPTS)
    assert found(engine.generate(PROMPTS, SAMPLING)) == expected()
    assert len(server.prompts()) <= asked + 1 + len(PROMPTS)


# -- sync ------------------------------------------------------------------------------------------------------------------


def test_a_sync_pauses_sends_clears_sets_the_version_and_resumes(stand_ins, run, tmp_path):
    (server,) = stand_ins()
    run([server])
    order = [path for path, body in server.asked if path not in ("/health", "/v1/models", "/server_info")]
    assert order[order.index("/pause") :] == [
        "/pause",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/weight_info",
        "/resume",
    ]
    assert json.loads(server.version)["version"] == 3
    assert not list((tmp_path / "weights").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/collective_rpc", (500, {"error": {"message": "no such file"}}), "with 500: 'no such file'"),
        ("/reset_prefix_cache", (200, {"success": False}), "did not clear its cached prefixes"),
        ("/weight_info", (200, {"weight_version": "7"}), "has the weight version '7' after a sync"),
        ("/pause", (200, "<html>"), "with what is no JSON: '<html>'"),
    ],
    ids=["reload", "prefixes", "version", "html"],
)
def test_a_server_that_fails_a_sync_is_given_up(stand_ins, run, path, answer, said):
    first, second = stand_ins(2)
    engine = run([first, second])
    first.faults[path] = lambda body, _: answer
    model = torch.nn.Linear(2, 2)
    engine.load_weights(model.state_dict().items(), version=4)
    first.asked.clear()
    assert found(engine.generate(PROMPTS, SAMPLING)) == expected()
    assert not first.prompts()
    second.faults[path] = lambda body, _: answer
    with pytest.raises(RunStopped, match=f"(?s){second.url} .*{said}"):
        engine.load_weights(model.state_dict().items(), version=5)


def test_all_tensors_are_gone_through_even_if_they_cant_be_written(stand_ins, run, tmp_path):
    """A sharded policy gathers each tensor on all processes: one that stops in the middle would leave the others waiting."""
    (server,) = stand_ins()
    engine = run([server])
    engine.transfer.file_gb = 1e-9
    seen = []

    def tensors():
        for i in range(4):
            seen.append(i)
            if i == 1:  # after the first file was written
                for folder in (tmp_path / "weights").rglob("weights-*"):
                    folder.rename(folder.with_name("gone"))
            yield f"w{i}", torch.ones(2)

    with pytest.raises(RunStopped, match=r"can't be written for the servers: .*No such file"):
        engine.load_weights(tensors(), version=4)
    assert seen == [0, 1, 2, 3]


def test_two_runs_on_one_server_are_told(stand_ins, run):
    (server,) = stand_ins()
    engine = run([server], sync=False)
    with pytest.raises(InputError, match=r"gets its weights from process \d+ on .*, which is running"):
        engine.load_weights(torch.nn.Linear(2, 2).state_dict().items(), version=1)
        run([server])


def test_another_runs_weights_in_the_middle_stop_the_run(stand_ins, run):
    (server,) = stand_ins()
    engine = run([server])
    server.version = server.version.replace('"process":', '"process":1')
    with pytest.raises(RunStopped, match=rf"{server.url} got its weights from process 1\d+ on"):
        engine.generate(PROMPTS, SAMPLING)


def test_a_server_that_was_restarted_is_asked_no_more(stand_ins, run):
    first, second = stand_ins(2)
    engine = run([first, second])
    first.version = "default"
    assert found(engine.generate(PROMPTS, SAMPLING)) == expected()
    second.version = "default"
    with pytest.raises(RunStopped, match=r"samples from other weights \('default'\) than it was sent"):
        engine.generate(PROMPTS, SAMPLING)


def test_closing_lets_the_server_go(stand_ins, run):
    (server,) = stand_ins()
    run([server]).close()
    assert (server.version, server.paused) == ("default", False)
    run([server])
