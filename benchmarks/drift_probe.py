"""The probe as it was fitted before training, asked later on: each prompt by a fit that has never seen it.

The folds and the fits are those of step 0. Only what they are shown and what they are held against changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from signal_tasks import FOLDS, Finding, Task

from saerl_lightning.data.probe_fits import Fit, fold_of
from saerl_lightning.data.probes import Probe
from saerl_lightning.data.scores import agreement
from saerl_lightning.signals.source import Features


@dataclass(frozen=True)
class FoldFits:
    """One fit a fold of n prompts, made without that fold."""

    fold: Int[np.ndarray, " n"]
    fits: tuple[Fit, ...]

    @classmethod
    def of(cls, probe: Probe, features: Features, labels: Float[np.ndarray, " n"]) -> FoldFits:
        """Fits the probe once a fold.

        Args:
            probe: its kind.
            features: (n, F).
            labels: (n,).
        """
        fold = fold_of(labels, FOLDS, 0)
        rest = [np.flatnonzero(fold != held_out) for held_out in range(FOLDS)]
        return cls(fold, tuple(probe.fit(features[rows], labels[rows]) for rows in rest))

    def predict(self, features: Features) -> Float[np.ndarray, " n"]:
        """Predicts each of the n prompts by the fit that has not seen it; rows may be of another time."""
        predicted = np.empty(len(self.fold))
        for held_out, fit in enumerate(self.fits):
            rows = np.flatnonzero(self.fold == held_out)
            predicted[rows] = fit.predict(features[rows])
        return predicted


class OldProbe(Task):
    """How hard a prompt is, said by the probe of step 0.

    Args:
        name: of the finding; says whose features are shown to it.
        labels: difficulty now, (n,).
        fits: gives the fits of step 0; asked only if there is something to predict.
        origin: names what they were fitted to, for the finding's key.
    """

    def __init__(self, name: str, labels: Float[np.ndarray, " n"], fits: Callable[[], FoldFits], origin: str) -> None:
        self.name = name
        self.labels = labels
        self.fits = fits
        self.origin = origin

    def measure(self, features: Features) -> Finding:
        predicted = self.fits().predict(features)
        return Finding.of(agreement(predicted, self.labels), predicted)

    def key(self, signal: str) -> str:
        return hashlib.sha256(f"{super().key(signal)} {self.origin}".encode()).hexdigest()
