"""The launcher of a run's other processes, which is its first process: they end once it is gone.

Lightning's first process starts one process for each further rank. One of these would wait in the rendezvous for half an
hour where the first process ends meanwhile: by a kill, or by a signal in the moment when it starts the other.
"""

from __future__ import annotations

import os
import threading
import time

from saerl_lightning.lock import start_time

NUMBER = "SAERL_LAUNCHER"  # the environment variable that holds the process number of the launcher
PAUSE = 1.0  # seconds between two looks
GRACE = 5.0  # seconds in which this process may still end by itself


def follow() -> None:
    """Ends this process once its launcher is gone; a process that nothing launched becomes a launcher itself.

    Ranks that another launcher has started, such as torchrun, are left to it.
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
