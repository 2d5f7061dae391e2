"""`export`: turns a checkpoint into an HF folder that transformers and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from saerl_lightning import hub
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.weights import PolicyCheckpoint, base_model, named_weights


def export(
    checkpoint: str,
    folder: str,
    policy: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = True,
) -> None:
    """Writes the checkpoint's policy with adapters merged, its tokenizer and a model card; uploads them if asked to.

    Args:
        checkpoint: Path of a `.ckpt` file of a run.
        folder: HF folder to write.
        policy: HF folder or hub name that the run started from (its model.policy.path), for architecture and tokenizer.
        trust_remote_code: Whether code in the policy's folder may run.
        overwrite: Whether an existing HF folder is replaced.
        push_to_hub: Model repository on the hub, `owner/name`, that the folder is uploaded to; null uploads nothing.
        private: Whether a repository that the upload creates is private.

    Raises:
        InputError: if the checkpoint is missing, unreadable or of another model, no policy is named, the folder exists, or
            the repository can't be written to.
    """
    target = Path(folder)
    _require_place(target, overwrite)
    if push_to_hub is not None:
        hub.require_upload(push_to_hub)
    trained = PolicyCheckpoint.read(Path(checkpoint))
    # The path that the checkpoint names is not used, because it could be any folder with code in it.
    if policy is None:
        raise InputError(
            f"the policy that '{checkpoint}' was trained from is not named; write --policy PATH (the checkpoint says "
            f"{trained.trained_from[:200]!r})"
        )
    source = Policy(policy, trained.dtype, trained.lora, trust_remote_code=trust_remote_code)
    model = source.load_model()
    try:
        model.load_state_dict(trained.weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"'{checkpoint}' was not trained from '{policy}': {said}; name another --policy") from error
    temporary = target.with_name(target.name + ".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    base_model(model).save_pretrained(temporary, state_dict=dict(named_weights(model)))
    source.load_tokenizer().save_pretrained(temporary)
    (temporary / "README.md").write_text(model_card(policy, trained))
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    print(f"wrote {folder}")
    if push_to_hub is not None:
        print(f"uploading to {push_to_hub}", flush=True)
        print(f"uploaded: {hub.upload(target, push_to_hub, private)}")


def model_card(policy: str, trained: PolicyCheckpoint) -> str:
    """Writes the README of an exported folder, with what the hub reads of it.

    Args:
        policy: HF folder or hub name that the run started from; a folder is not named.
        trained: Checkpoint that was exported.
    """
    known = not Path(policy).exists()  # the path of a folder says nothing to others, and may tell who wrote it
    facts = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["saerl_lightning"]}
    head = yaml.safe_dump({**facts, "base_model": policy} if known else facts, sort_keys=False)
    adapters = f" Adapters of rank {trained.lora.rank} are merged into the weights." if trained.lora else ""
    return (
        f"---\n{head}---\n\n# {policy if known else 'A model'}, trained with saerl_lightning\n\n"
        f"Weights after {trained.step:,} optimiser steps, {trained.dtype}.{adapters}\n"
    )


def _require_place(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"'{target}' exists; write --overwrite true to replace it, or another folder")
    # Only an HF folder is replaced, so that a mistyped path can't delete other files.
    if not (target / "config.json").is_file():
        raise InputError(f"'{target}' has no config.json, so it is no HF folder and is not replaced; name another")
