"""Writes what `predict` samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning

from saerl_lightning.records import PromptBatch, Rollouts


class PredictionWriter(lightning.Callback):
    """Writes every sampled completion to `predictions.jsonl` in the run folder (one file a rank beyond the first)."""

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begins a new file: two runs of `predict` are not mixed."""
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
        self._file(trainer).unlink(missing_ok=True)

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one line a completion: uid, set, text, truncated."""
        rollouts: Rollouts = outputs
        name = trainer.datamodule.test_names[dataloader_idx]  # pyright: ignore[reportAttributeAccessIssue]
        with self._file(trainer).open("a") as file:
            for r, text in enumerate(rollouts.texts):
                uid = batch.prompts[r // rollouts.group_size].uid
                line = {"uid": uid, "set": name, "completion": text, "truncated": bool(rollouts.truncated[r])}
                file.write(json.dumps(line) + "\n")

    @staticmethod
    def _file(trainer: lightning.Trainer) -> Path:
        rank = trainer.global_rank
        return Path(trainer.default_root_dir, f"predictions-{rank}.jsonl" if rank else "predictions.jsonl")
