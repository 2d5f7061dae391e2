"""ServerProcesses: starts vLLM servers on this machine, waits until they answer, and ends them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.files import keep_earlier
from saerl_lightning.progress import duration
from saerl_lightning.rollout.serving import keeper
from saerl_lightning.rollout.serving.command import ServerCommand, ServerNeeds, ServerOptions, server_command
from saerl_lightning.rollout.serving.connection import HEALTH_S, ServerFault, VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet

LOOK_S = 1.0  # between two looks whether a server answers
SAY_S = 15.0  # between two lines
PACKAGE = Path(__file__).parents[3]  # where the package's folder is


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunningServer:
    """A server that was started here.

    Args:
        server: Server with its address.
        process: Process that keeps it, the leader of its group.
        log: File of its output.
    """

    server: VLLMServer
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def last_line(self) -> str:
        """Last line of the log that says something."""
        lines = [line.strip() for line in self._tail() if line.strip()]
        return lines[-1][:160] if lines else ""

    @property
    def cause(self) -> str:
        """Last error in the log, or else its last line."""
        errors = [line.strip() for line in self._tail() if re.search(r"\b\w*(Error|Exception)\b:? \S", line)]
        return errors[-1][:300] if errors else self.last_line

    def _tail(self) -> list[str]:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-20_000:].splitlines()
        return []

    def end(self, harsher: signal.Signals) -> None:
        """Sends a signal to the server and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, harsher)


class ServerProcesses:
    """Servers that were started here, each a process group with a log file. They end with this process at the latest."""

    def __init__(self) -> None:
        self.running: list[RunningServer] = []

    def start(self, fleet: Fleet, needs: ServerNeeds, options: ServerOptions, say: Callable[[str], None] = say) -> None:
        """Starts all servers of a fleet and waits until each answers.

        Args:
            fleet: Servers with addresses on this machine.
            needs: What the run needs of them.
            options: Options of the servers.
            say: Function that tells the user how far it is.

        Raises:
            InputError: if a port is taken, or a server ends or does not answer in time, with the end of its log.
        """
        commands = [server_command(each, i, needs, options) for i, each in enumerate(fleet.servers)]
        for server in fleet.servers:
            _require_free(server)
        try:
            for server, command in zip(fleet.servers, commands, strict=True):
                self.running.append(_started(server, command, Path(options.logs)))
                say(f"starting the server {server.url}, log: {self.running[-1].log}")
            self._wait(fleet, options.start_s, say)
        except BaseException:  # also Ctrl-C
            self.close()
            raise

    def _wait(self, fleet: Fleet, limit_s: float, say: Callable[[str], None]) -> None:
        began = said = time.monotonic()
        missing = list(self.running)
        while missing:
            time.sleep(LOOK_S)
            self.require_running()
            missing = [each for each in missing if not _answers(fleet, each.server)]
            waited = time.monotonic() - began
            if missing and waited > limit_s:
                raise InputError(
                    f"the server {missing[0].server.url} did not answer within {duration(limit_s)}; its log "
                    f"{missing[0].log} ends: {missing[0].last_line}; raise engine.server.start_s if it only needs longer"
                )
            if missing and time.monotonic() - said >= SAY_S:
                said = time.monotonic()
                ready = len(self.running) - len(missing)
                say(f"{ready} of {len(self.running)} servers ready after {duration(waited)}: {missing[0].last_line}")
        say(f"{len(self.running)} of {len(self.running)} servers ready after {duration(time.monotonic() - began)}")

    def require_running(self) -> None:
        """Refuses to go on with a server that has ended.

        Raises:
            InputError: with the cause that its log gives.
        """
        for each in self.running:
            if each.process.poll() is not None:
                raise InputError(
                    f"the server {each.server.url} ended with exit code {each.process.returncode}: {each.cause} (log: "
                    f"{each.log})"
                )

    def close(self) -> None:
        """Ends all servers, at first by SIGTERM."""
        running, self.running = self.running, []
        for each in running:
            each.end(signal.SIGTERM)
        until = time.monotonic() + keeper.GRACE_S
        for each in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, until - time.monotonic()))
            each.end(signal.SIGKILL)  # what is left of the group
            each.process.wait()


def _started(server: VLLMServer, command: ServerCommand, logs: Path) -> RunningServer:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"server-{server.port}.log"
    keep_earlier(log)
    environment = command.whole_environment()
    # The worker of a transfer is imported from here, also where the package is not installed.
    path = [str(PACKAGE), *filter(None, [environment.get("PYTHONPATH")])]
    kept: Sequence[str] = [sys.executable, "-m", keeper.__name__, str(os.getpid()), *command.arguments]
    with log.open("wb") as file:
        file.write(f"{command}\n".encode())
        file.flush()
        process = subprocess.Popen(  # noqa: S603 - the run's own command
            kept,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,
        )
    return RunningServer(server, process, log)


def _require_free(server: VLLMServer) -> None:
    with socket.socket() as tried:
        tried.settimeout(HEALTH_S)
        if tried.connect_ex((server.host, server.port)) == 0:
            raise InputError(
                f"something listens at {server.url} already; end it, write another port into engine.urls, or, if it is "
                "a server for this run, leave out engine.launch"
            )


def _answers(fleet: Fleet, server: VLLMServer) -> bool:
    try:
        fleet.run(server.call(fleet.client, "/health", method="GET"))
    except ServerFault:
        return False
    return True
