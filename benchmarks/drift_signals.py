"""The signals of one checkpoint, read with its own weights and one SAE, and how much of its activations that SAE explains.

The SAE is the one that belongs to the policy before training; that it is not the checkpoint's is the question.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saerl_lightning.data.scores import Interval, bootstrap
from saerl_lightning.errors import InputError
from saerl_lightning.signals.cache import CachedSignals
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.reading import ResidualStream
from saerl_lightning.signals.sae import TILE, CodeSignals, SAESignals
from saerl_lightning.signals.sae_source import CONFIG, SAESource, hooked_layer
from saerl_lightning.signals.source import SignalSource
from saerl_lightning.signals.text import LengthSignals, TextSignals


class ReconstructionSums(CodeSignals):
    """Sums over a prompt's tokens that explained variance is made of, a row of 3 + d numbers a prompt.

    They are: tokens, |x - y|^2 with y the SAE's reconstruction of x, |x|^2, and x itself. The first token is left out, as
    it is by every signal; a token that prompts share counts for each.
    """

    def refuse(self, sae: Any) -> None:
        """Takes every SAE."""

    def pool(self) -> Callable[[ResidualStream], csr_array]:
        """Loads the SAE; what comes back sums over a batch's residual stream."""
        sae = self._load_sae()

        def sums(reading: ResidualStream) -> csr_array:
            tokens = token_sums(sae, reading.hidden)
            return csr_array(np.stack([tokens[path[1:]].sum(axis=0) for path in reading.paths]))

        return sums


@dataclass(frozen=True)
class Signals:
    """What is read of one checkpoint."""

    by_name: dict[str, SignalSource]
    sums: CachedSignals

    @classmethod
    def of(cls, policy: str, layer: int, sae: str, cache: str) -> Signals:
        """Names the signals of a policy.

        Args:
            policy: HF folder, or a name on the hub.
            layer: that is read.
            sae: folder of the SAE.
            cache: folder of feature rows.
        """
        model, source = ReadModel(policy, layer), SAESource(sae, check_model=False)
        named: dict[str, SignalSource] = {
            "SAE": CachedSignals(SAESignals(model, source), cache),
            "hidden": CachedSignals(HiddenSignals(model), cache),
            "TF-IDF": TextSignals(),
            "length": LengthSignals(),
        }
        return cls(named, CachedSignals(ReconstructionSums(model, source), cache))

    @property
    def cached(self) -> list[CachedSignals]:
        """Those that need the model."""
        return [self.sums, *(each for each in self.by_name.values() if isinstance(each, CachedSignals))]


@torch.inference_mode()
def token_sums(sae: Any, hidden: Float[torch.Tensor, "n d"]) -> Float[np.ndarray, "n k"]:
    """What each token adds: 1, its squared error, its squared norm, itself; float64, for a difference of sums follows."""
    rows = []
    for x in hidden.to(sae.device).float().split(TILE):
        error = (x - sae.decode(sae.encode(x))).double().pow(2).sum(1, keepdim=True)
        wide = x.double()
        rows.append(torch.cat([torch.ones_like(error), error, wide.pow(2).sum(1, keepdim=True), wide], dim=1))
    return torch.cat(rows).cpu().numpy() if rows else np.zeros((0, 3 + hidden.shape[1]))


def explained_variance(sums: Float[np.ndarray, "P k"]) -> Interval:
    """1 - E|x - y|^2 / (E|x|^2 - |E x|^2) over all tokens, with its interval over prompts.

    Args:
        sums: rows of `ReconstructionSums`.
    """

    def statistic(counts: Int[np.ndarray, "D P"]) -> Float[np.ndarray, " D"]:
        tokens, error, squares, *total = (counts @ sums).T
        return 1 - error / (squares - np.sum(np.square(total), axis=0) / tokens)

    return bootstrap({"explained": statistic}, len(sums))["explained"]


def layer_of(sae: Path) -> int:
    """The layer that an SAE was trained on, from its own `cfg.json`.

    Raises:
        InputError: if it doesn't say, or there is no such SAE.
    """
    file = sae / CONFIG
    if not file.is_file():
        raise InputError(f"'{file}' is missing; write the folder of an SAE")
    hook = json.loads(file.read_text()).get("metadata", {}).get("hook_name")
    if not hook:
        raise InputError(f"'{file}' does not say which layer the SAE reads; write --layer N")
    return hooked_layer(hook)
