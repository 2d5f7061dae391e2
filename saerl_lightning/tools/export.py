"""Turns a checkpoint into an HF folder that transformers and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.policy.checkpoint import PolicyCheckpoint
from saerl_lightning.policy.weights import base_model, named_weights


def export(checkpoint: str, folder: str, overwrite: bool = False) -> None:
    """Writes the checkpoint's policy, adapters merged in, with its tokenizer.

    Args:
        checkpoint: a `.ckpt` file of a run.
        folder: where the HF folder goes.
        overwrite: replace an HF folder that exists.

    Raises:
        InputError: if the checkpoint is missing or unreadable, or the folder exists.
    """
    target = Path(folder)
    _require_place(target, overwrite)
    trained = PolicyCheckpoint.read(Path(checkpoint))
    model = trained.policy.load_model()
    model.load_state_dict(trained.weights)
    temporary = target.with_name(target.name + ".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    base_model(model).save_pretrained(temporary, state_dict=dict(named_weights(model)))
    trained.policy.load_tokenizer().save_pretrained(temporary)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    print(f"wrote {folder}")


def _require_place(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"'{target}' exists; write --overwrite true to replace it, or another folder")
    if not (target / "config.json").is_file():  # a slip of the finger must not delete somebody's home
        raise InputError(f"'{target}' has no config.json, so it is no HF folder and is not replaced; name another")
