"""Signal sources that actors import: nothing else, so that they start fast."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.signals.source import SignalSource


class Slow(SignalSource):
    """A row says who computed it; each block takes a while, and its process leaves its number in a folder."""

    by_row = True

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    def features(self, prompts):
        Path(self.folder, str(os.getpid())).touch()
        time.sleep(self.seconds)
        return np.array([[float(prompt.uid[1:]), os.getpid()] for prompt in prompts])

    def fingerprint(self, prompts):
        return f"slow {[prompt.uid for prompt in prompts]}"


class Deadly(Slow):
    """Its process dies."""

    def features(self, prompts):
        os.kill(os.getpid(), signal.SIGKILL)


class Refusing(Slow):
    """Refuses what it is given."""

    def features(self, prompts):
        raise InputError("the features of prompt 'p3' are NaN; take it out")
