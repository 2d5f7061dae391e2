"""A small SAE on the tiny policy and the text that it is trained on."""

from __future__ import annotations

import torch

from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.sae.activations import ActivationDataModule
from saerl_lightning.sae.module import SAEModule
from saerl_lightning.signals.model import ReadModel

LAYER = 0
SPARSE = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}


class ListedText(PromptSource):
    """Sums that share words, of several lengths."""

    def __init__(self, count: int = 60) -> None:
        self.count = count

    def load(self) -> list[Prompt]:
        texts = [" + ".join(str(i * j % 10) for j in range(1, 3 + i % 7)) + "=" for i in range(self.count)]
        return [Prompt.asking(f"p{i}", text, "") for i, text in enumerate(texts)]


def adam(params):
    return torch.optim.Adam(params, lr=3e-3)


class DoubleSAEModule(SAEModule):
    """Trains in float64, so that rounding flips no activation at the edge of a batch's top-k."""

    def configure_model(self) -> None:
        super().configure_model()
        self.double()


def module(kind: type[SAEModule] = SAEModule, **changes) -> SAEModule:
    settings = {"d_sae": 96, "options": {"k": 4}, "optimizer": adam, "warmup_steps": 2}
    return kind(**{**settings, **changes})


def data(model: str, **changes) -> ActivationDataModule:
    settings = {
        "prompts": ListedText(),
        "batch_tokens": 32,
        "buffer_tokens": 300,
        "validation_prompts": 6,
        "validation": 0.1,
    }
    return ActivationDataModule(ReadModel(model, LAYER, device="cpu"), **{**settings, **changes})


def read(model: str, **changes) -> ActivationDataModule:
    """A datamodule that is set up, without a trainer."""
    made = data(model, **changes)
    made.setup("fit")
    return made
