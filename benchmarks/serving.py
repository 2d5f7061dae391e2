"""A vLLM server for a benchmark, started by the package's own command `serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workload import ROOT

START_S = 900  # of a server
END_S = 60


def free_url() -> str:
    """An address on loopback that nothing listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def served(url: str, flags: Sequence[str], logs: Path, before: Sequence[str] = ()) -> Iterator[None]:
    """Keeps a server inside the block.

    Args:
        url: address that it listens at.
        flags: configs and flags of the run that it is for.
        logs: folder for its log, and for that of the command.
        before: words before the command, such as those that pin it to a core.
    """
    options = [f"--model.engine.urls=[{url}]", f"--model.engine.server.logs={logs}"]
    command = [*before, sys.executable, "main.py", "serve", *flags, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "serve.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(url, process, logs)
        yield
    finally:
        process.terminate()
        process.wait(END_S)


def _wait(url: str, process: subprocess.Popen[bytes], logs: Path) -> None:
    """Waits until the server answers."""
    began = time.monotonic()
    while time.monotonic() - began < START_S and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    sys.exit(f"the server {url} did not start; see {logs}")
