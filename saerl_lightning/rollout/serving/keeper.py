"""Keeper: a program that runs a server and ends it with the process that started it; PARENT and COMMAND are its arguments.

A run that is killed can't end its servers itself. The keeper leads a process group of its own, with the server and the
processes that it starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

PAUSE_S = 0.5  # between two looks at the parent
GRACE_S = 15.0  # for a server to end by itself


def main(parent: int, command: list[str]) -> int:
    """Runs a command until it ends or its parent has ended.

    Args:
        parent: Number of the process that started this one.
        command: Program and arguments.

    Returns:
        Exit code of the command.
    """
    # With the group, this process is sent it too. A function, because what is ignored would be ignored by the server too.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(command)  # noqa: S603 - the run's own command
    while process.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGTERM)
            until = time.monotonic() + GRACE_S
            while process.poll() is None and time.monotonic() < until:
                time.sleep(PAUSE_S)
            os.killpg(0, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
