"""Servers that are started here: waited for, logged, told about, and ended, whatever becomes of who started them."""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.lock import start_time
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.serving import command, keeper, processes
from saerl_lightning.rollout.serving.command import ServerCommand, ServerNeeds, ServerOptions, server_command
from saerl_lightning.rollout.serving.connection import VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.transfer.broadcast import GlooTransfer, NCCLTransfer
from tests.rollout.conftest import free_port

# What vLLM is for a starter: it is silent for a while, answers /health, and has a child of its own.
SERVER = """
import http.server, subprocess, sys, time
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("child", child.pid, flush=True)
time.sleep(float(sys.argv[2]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
FAILS = "raise ValueError('Free memory on device (1/80 GiB) is less than desired')"
NEEDS = ServerNeeds("owner/model", "bfloat16", 300, transfer_flags=("--x", "{y}"), api_key_env="MY_KEY")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Starts such servers; yields a function that gives the fleet, the processes and what was said."""
    monkeypatch.setattr(processes, "LOOK_S", 0.05)
    monkeypatch.setattr(processes, "SAY_S", 0.2)
    made = []

    def start(count=1, delay=0.5, code=SERVER, start_s=20.0, urls=None):
        urls = urls or [f"http://127.0.0.1:{free_port()}" for _ in range(count)]
        monkeypatch.setattr(
            processes,
            "server_command",
            lambda server, *_: ServerCommand({"MARK": "1"}, [sys.executable, "-c", code, str(server.port), str(delay)]),
        )
        fleet, running, said = Fleet([VLLMServer(url) for url in urls], "", 4, 5.0, 0), processes.ServerProcesses(), []
        made.append((fleet, running))
        running.start(fleet, NEEDS, ServerOptions(logs=str(tmp_path / "logs"), start_s=start_s), said.append)
        return running, said

    yield start
    for fleet, running in made:
        fleet.close()
        running.close()


def child_of(running) -> int:
    return int(re.search(r"child (\d+)", running.log.read_text())[1])


def gone(process: int) -> bool:
    until = time.monotonic() + 10
    while start_time(process) is not None and time.monotonic() < until:
        time.sleep(0.05)
    return start_time(process) is None


def test_servers_are_waited_for_and_ended_with_all_that_they_started(started):
    running, said = started(2)
    assert any(re.match(r"[01] of 2 servers ready after \d s: child \d+$", line) for line in said)
    assert said[-1].startswith("2 of 2 servers ready")
    leaders, children = [each.process.pid for each in running.running], [child_of(each) for each in running.running]
    assert all("MARK=1 " in each.log.read_text() for each in running.running)
    running.close()
    assert all(map(gone, [*leaders, *children]))
    running.close()


def test_a_server_that_ends_by_itself_is_told_with_its_cause(started, tmp_path):
    with pytest.raises(
        InputError, match=r"ended with exit code 1: ValueError: Free memory on device .*server-\d+\.log"
    ):
        started(code=FAILS)


def test_a_server_that_never_answers_is_told_and_ended(started, tmp_path):
    with pytest.raises(InputError, match=r"did not answer within 1 s; its log .* ends: child \d+; raise engine"):
        started(delay=60, start_s=1.0)
    (log,) = (tmp_path / "logs").iterdir()
    assert gone(int(re.search(r"child (\d+)", log.read_text())[1]))


def test_a_port_that_is_taken_is_told_before_anything_is_started(started, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"something listens at {url} already"):
            started(urls=[url])
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("harsher", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_a_parent_that_is_killed(tmp_path, harsher):
    port, log = free_port(), tmp_path / "log"
    parent = (
        "import subprocess, sys, os, time\n"
        f"subprocess.Popen([sys.executable, '-m', {keeper.__name__!r}, str(os.getpid()), sys.executable, '-c', {SERVER!r},"
        f" '{port}', '0'], stdout=open({str(log)!r}, 'w'), start_new_session=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        while not (log.exists() and "child" in log.read_text()):
            time.sleep(0.05)
        process.send_signal(harsher)
    assert gone(int(re.search(r"child (\d+)", log.read_text())[1]))


def test_the_command_has_the_runs_model_and_the_machines_devices(monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    options = ServerOptions(2, 2, [4, 5, 6, 7, 0, 1, 2, 3], device="cuda", flags=["--seed", "1"])
    second = server_command(VLLMServer("http://n3:8001"), 1, NEEDS, options)
    text = str(second)
    assert text.startswith('VLLM_API_KEY="$MY_KEY" VLLM_SERVER_DEV_MODE=1 CUDA_VISIBLE_DEVICES=0,1,2,3 ')
    assert "s3cret" not in text and second.whole_environment()["VLLM_API_KEY"] == "s3cret"
    for part in (
        "--model owner/model --served-model-name policy --host n3 --port 8001 --dtype bfloat16 --max-model-len 300",
        "--tensor-parallel-size 2 --data-parallel-size 2 --x '{y}' --seed 1",
        "--gpu-memory-utilization 0.9 --use-fp64-gumbel",
    ):
        assert part in text
    assert "--enforce-eager" not in text
    with pytest.raises(InputError, match="names 8 GPUs, and server 3 needs 4 more"):
        server_command(VLLMServer("http://n3:8002"), 2, NEEDS, options)
    with pytest.raises(InputError, match="has no port"):
        server_command(VLLMServer("http://n3"), 0, NEEDS, options)
    assert command.NAME == "policy"


def test_transfers_ask_for_their_own_servers():
    assert NCCLTransfer().server_flags() == ("--weight-transfer-config", '{"backend":"nccl"}')
    assert '{"backend":"gloo"}' in GlooTransfer().server_flags()


def test_a_run_that_launches_ends_its_servers(started, load_tiny, monkeypatch, tmp_path):
    """`launch` starts them before it asks what they are: these answer nothing else, and are ended."""
    url = f"http://127.0.0.1:{free_port()}"
    running, _ = started(urls=[url])
    running.close()
    options = ServerOptions(device="cpu", logs=str(tmp_path / "own"))
    with pytest.raises(InputError, match=f"the server {url} "):
        ServerEngine([url], launch=True, server=options).start(*load_tiny(), 64)
    (log,) = (tmp_path / "own").iterdir()
    assert gone(int(re.search(r"child (\d+)", log.read_text())[1]))
