"""An engine that may sample while the policy is trained, and a run one step ahead on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import lightning

from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.terms import SamplerCorrection
from saerl_lightning.policy.load import Policy
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.hf import HFEngine
from tests.training.conftest import data, fit, module, trainer


class CopyEngine(RolloutEngine):
    """Samples by a copy of the policy, which has the weights of the latest sync, as a server does.

    It refuses to take weights while it samples, and notes what it did: `sample` and `load`, with the version.
    """

    concurrent = True

    def __init__(self, hold: Callable[[], object] = bool) -> None:
        self.inner = HFEngine()
        self.hold = hold  # called in the second thread, before it samples
        self.one_at_a_time = threading.Lock()
        self.asked: list = []
        self.done: list[tuple[str, int]] = []

    def start(self, model, tokenizer, max_model_len) -> None:
        self.copy, self.version = Policy(model.name_or_path).load_model(), 0
        self.inner.start(self.copy, tokenizer, max_model_len)

    def generate(self, prompt_ids, sampling):
        self.asked.append(prompt_ids)  # by a step's canary and its batch at once
        try:
            if len(prompt_ids) > 1:
                self.done.append(("sample", self.version))
            if threading.current_thread().name == "ahead":
                self.hold()
            with self.one_at_a_time:
                return self.inner.generate(prompt_ids, sampling)
        finally:
            self.asked.remove(prompt_ids)

    def load_weights(self, named_tensors, version) -> None:
        assert not self.asked, "weights change while a batch is sampled"
        self.done.append(("load", version))
        self.version = version
        self.copy.load_state_dict({name: tensor.detach().clone() for name, tensor in named_tensors})
        self.inner.load_weights(self.copy.state_dict().items(), version)

    def close(self) -> None:
        self.inner.close()


class Record(lightning.Callback):
    """Keeps what was logged at each step, and the rows that it served."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.served: list[list[int]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.served.append(batch.rows)


def ahead(tiny: str, **changes):
    """A module that looks ahead, on an engine of its own."""
    settings = {"engine": CopyEngine(), "objective": GRPO(correction=SamplerCorrection()), "lookahead": True}
    return module(tiny, **{**settings, **changes})


def run(tiny: str, folder: Path, steps: int, *callbacks, datamodule=None, ckpt_path=None, limits=None, **changes):
    """Fits, and returns the module and what was logged."""
    record = Record()
    made = ahead(tiny, **changes)
    fit(made, datamodule or data(), trainer(folder, steps, (record, *callbacks), **limits or {}), ckpt_path=ckpt_path)
    return made, record
