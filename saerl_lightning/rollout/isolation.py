"""Keeps a library and the trainer's process apart: random streams, thread count, and the trainer's autocast."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Puts back the random states of Python, NumPy and torch, and torch's threads, when the block ends.

    vLLM's start-up reseeds all of them, and on a CPU replaces `torch.set_num_threads` by a function that does nothing;
    its sampling draws from torch's. Autocast is off inside: vLLM has a dtype of its own.
    """
    python, legacy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global one
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    kinds = {"cpu", *(["cuda"] if torch.cuda.is_available() else [])}
    try:
        with ExitStack() as off:
            for kind in kinds:
                off.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
