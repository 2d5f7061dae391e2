"""A server that is not what the run needs is refused at the start, with the command that starts a right one."""

import time

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.serving.command import ServerOptions
from saerl_lightning.rollout.serving.fitness import same_model
from saerl_lightning.rollout.transfer.file_transfer import WORKER, FileTransfer
from tests.rollout.stand_in import StandIn, slowly


@pytest.fixture
def refusal(load_tiny, tiny_folder, tmp_path):
    """The refusal of a stand-in with these settings, and the stand-in's address."""
    made = []

    def refused(faults=None, model=None, url=None, timeout_s=5.0, **settings) -> str:
        server = StandIn(str(model or tiny_folder), **settings)
        made.append(server)
        server.faults = faults or {}
        engine = ServerEngine([url or server.url], transfer=FileTransfer(str(tmp_path / "w")), timeout_s=timeout_s)
        with engine, pytest.raises(InputError) as error:
            engine.start(*load_tiny(), 64)
        return str(error.value).replace(url or server.url, "URL")

    yield refused
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_config": {"dtype": "torch.bfloat16"}}, "has dtype bfloat16, and the run needs float32"),
        (
            {"model_config": {"logprobs_mode": "raw_logprobs"}},
            "has logprobs_mode raw_logprobs, and the run needs processed",
        ),
        ({"model_config": {"generation_config": "auto"}}, "has generation_config auto"),
        ({"model_config": {"max_model_len": 63}}, "takes rows of 63 tokens, and the run's have up to 64"),
        ({"scheduler_config": {"enable_chunked_prefill": True}}, "has enable_chunked_prefill True"),
        ({"device_config": {"device": "cuda"}}, "has use_fp64_gumbel False"),
        ({"model_config": {"model": "Qwen/Other"}}, "has the model Qwen/Other, and policy.path is"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_an_unfit_server_is_refused_with_the_command(refusal, tiny_folder, settings, said):
    error = refusal(**settings)
    assert f"the server URL {said}" in error
    command = error.partition("; start it with: ")[2]
    assert "VLLM_SERVER_DEV_MODE=1" in command
    for part in (
        f"--model {tiny_folder}",
        "--max-model-len 64",
        "--dtype float32",
        "--enable-scale-out",
        "--host 127.0.0.1",
    ):
        assert part in command
    assert ("--use-fp64-gumbel" in command) == ("cuda" in str(settings))
    assert ("--no-enable-chunked-prefill" in command) == ("cuda" not in str(settings))


@pytest.mark.parametrize(
    ("path", "fault", "said"),
    [
        ("/server_info", (404, '{"detail":"Not Found"}'), "with 404: 'Not Found' (VLLM_SERVER_DEV_MODE=1"),
        ("/inference/v1/generate", (404, '{"detail":"Not Found"}'), "/inference/v1/generate with 404"),
        ("/v1/models", (401, '{"error":"Unauthorized"}'), "with 401: 'Unauthorized' (engine.api_key_env"),
        ("/v1/models", (200, "<html>hello</html>"), "with what is no JSON: '<html>hello</html>'"),
        ("/v1/models", (500, "oh"), "answered /v1/models with 500: 'oh'"),
        ("/v1/models", (200, '{"data": []}'), "is no vLLM server of a version from 0.32 on"),
    ],
    ids=["dev mode", "scale-out", "key", "html", "500", "other"],
)  # fmt: skip
def test_what_is_no_server_for_a_trainer_is_refused(refusal, path, fault, said):
    error = refusal(faults={path: lambda body, number: fault})
    assert said in error
    assert "start it with: " in error


def test_a_url_that_refuses_or_hangs_is_told_in_time(refusal):
    assert "the server URL can't be reached" in refusal(url="http://127.0.0.1:9")
    began = time.monotonic()
    assert "gave no whole answer to /v1/models within 1 s" in refusal({"*": slowly(20)}, timeout_s=1.0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([], "is empty"),
        (["127.0.0.1:8000"], "write"),
        (["ftp://a:1"], "base address"),
        (["http://a:1/v1"], "base address"),
        (["http://me:pw@a:1"], "api_key_env"),
        (["http://a:1", "http://a:1/"], "twice"),
    ],
    ids=str,
)
def test_addresses_that_are_none_are_refused(urls, said):
    with pytest.raises(InputError, match=said):
        ServerEngine(urls)


def test_a_folder_that_the_server_does_not_see_is_refused(refusal, tmp_path):
    shared = {"parallel_config": {"worker_extension_cls": WORKER}}
    error = refusal({"/collective_rpc": lambda body, number: (200, {"results": [""]})}, **shared)
    assert f"does not see what is written to '{tmp_path / 'w'}' here" in error
    assert not list((tmp_path / "w").iterdir())


def test_the_key_is_sent_and_nowhere_written(load_tiny, tiny_folder, tmp_path, monkeypatch):
    server = StandIn(str(tiny_folder))
    keys = set()
    reply = server.reply
    server.reply = lambda path, body, headers: keys.add(headers.get("Authorization")) or reply(path, body, headers)
    with pytest.raises(InputError, match=r"'NO_SUCH_KEY', and this environment variable holds no key"):
        ServerEngine([server.url], api_key_env="NO_SUCH_KEY").check()
    monkeypatch.setenv("MY_KEY", "s3cret")
    with ServerEngine([server.url], api_key_env="MY_KEY", transfer=FileTransfer(str(tmp_path))) as engine:
        engine.start(*load_tiny(), 64)
        assert keys == {"Bearer s3cret"}
        assert "s3cret" not in repr(vars(engine))
    server.settings["model_config"]["dtype"] = "torch.float16"
    with pytest.raises(InputError) as error:
        ServerEngine([server.url], api_key_env="MY_KEY").start(*load_tiny(), 64)
    assert 'VLLM_API_KEY="$MY_KEY" ' in str(error.value) and "s3cret" not in str(error.value)
    server.close()


def test_servers_elsewhere_are_not_launched_here():
    with pytest.raises(InputError, match="http://n3:8000 is another"):
        ServerEngine(["http://n3:8000"], launch=True, server=ServerOptions(device="cpu")).check()
    with pytest.raises(InputError, match=r"engine.server.devices"):
        ServerEngine(launch=True, server=ServerOptions(device="cuda")).check()


def test_a_model_is_known_by_its_configuration_or_its_name(tmp_path):
    for name, text in {"a": '{"layers": 2, "dtype": "x"}', "b": '{"layers": 2}', "c": '{"layers": 3}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert same_model(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not same_model(str(tmp_path / "a"), str(tmp_path / "c"))
    assert same_model("/elsewhere/smollm2-135m", "models/smollm2-135m")
    assert not same_model("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
