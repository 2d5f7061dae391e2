"""Writes what `predict` samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning

from saerl_lightning.records import PromptBatch, Rollouts


class PredictionWriter(lightning.Callback):
    """Appends every sampled completion to `predictions.jsonl` in the run folder (one file a rank beyond the first)."""

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
        name = "predictions.jsonl" if trainer.is_global_zero else f"predictions-{trainer.global_rank}.jsonl"
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            for r, text in enumerate(rollouts.texts):
                uid = batch.prompts[r // rollouts.group_size].uid
                line = {"uid": uid, "set": dataloader_idx, "completion": text, "truncated": bool(rollouts.truncated[r])}
                file.write(json.dumps(line) + "\n")
