"""Ends the other processes of a run when its first process, the launcher, has ended.

Lightning's first process starts one process for each further rank. If the first process is killed while it does so, the
others would otherwise wait for it for half an hour.
"""

from __future__ import annotations

import os
import threading
import time

from saerl_lightning.lock import start_time

NUMBER = "SAERL_LAUNCHER"  # environment variable with the launcher's process number
PAUSE = 1.0  # seconds between two checks
GRACE = 5.0  # seconds that this process gets to end by itself


def follow() -> None:
    """Ends this process once its launcher has ended. A process without a launcher becomes a launcher itself.

    Ranks started by another launcher, such as torchrun, are left to that launcher.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ[NUMBER] = str(os.getpid())
        return
    given = os.environ.get(NUMBER, "")
    if given.isdigit() and (os.getppid() == int(given) or start_time(int(given)) is None):
        threading.Thread(target=_end_after, args=(int(given),), name="launcher-observer", daemon=True).start()


def _end_after(launcher: int) -> None:
    """Waits until this process has another parent, and ends it without any clean-up: it may wait in foreign code."""
    while os.getppid() == launcher:
        time.sleep(PAUSE)
    time.sleep(GRACE)
    os._exit(1)
