"""The processes of other ranks that Lightning starts on this machine: they end on their own, and not after the first one.

Lightning looks at them every five seconds, and kills all processes of a run, the first one too, once one has ended with
another code than 0. So a run that ends on purpose takes them out of its sight.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

if TYPE_CHECKING:
    import lightning

GRACE = 5.0  # seconds they have to end by themselves, and as many once they are asked to


def watch_no_more() -> None:
    """Keeps this process from being killed because another one has ended."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def end(trainer: lightning.Trainer, grace: float = GRACE) -> None:
    """Waits for the processes that the trainer started, then asks them to end, then kills them.

    One that waits for this process in an exchange would wait for ever.

    Args:
        trainer: of this process.
        grace: seconds before each.
    """
    children: Sequence[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for harsher in (subprocess.Popen.terminate, subprocess.Popen.kill):
        until = time.monotonic() + grace
        while time.monotonic() < until and any(child.poll() is None for child in children):
            time.sleep(0.05)
        for child in children:
            harsher(child)
