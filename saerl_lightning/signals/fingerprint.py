"""Digests of what a computation depends on: files, models, prompts. They are cache keys, not proofs of origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from saerl_lightning import hub
from saerl_lightning.records import Prompt
from saerl_lightning.signals.model import ReadModel

WHOLE = 256 * 2**20  # bytes; of larger files only blocks are read
BLOCKS, BLOCK = 64, 2**20
MODEL_FILES = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py", ".gguf"}


def digest(words: Iterable[str]) -> str:
    """SHA-256 of a list of words; no two different lists share one."""
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()


def digest_prompts(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of what a model reads of prompts, in order, with their uids."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(json.dumps([prompt.uid, [dict(message) for message in prompt.messages]], sort_keys=True).encode())
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes; beyond 256 MB of its size and 64 blocks of it, first and last included."""
    size = path.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size < WHOLE:
            while block := file.read(BLOCK):
                sha.update(block)
        else:
            for index in range(BLOCKS):
                file.seek(index * (size - BLOCK) // (BLOCKS - 1))
                sha.update(file.read(BLOCK))
    return sha.hexdigest()


def digest_folder(folder: Path, suffixes: Iterable[str] = MODEL_FILES) -> str:
    """SHA-256 of the names and bytes of a folder's files with one of some suffixes; sub-folders are left out."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in set(suffixes))
    return digest(word for path in files for word in (path.name, digest_file(path)))


def digest_model(model: ReadModel) -> str:
    """Names what a model reads: its files or its commit on the hub, the layer and the dtype.

    Raises:
        InputError: if there is no such model, or it has no such layer.
    """
    layer, _, _ = model.config()
    weights = digest_folder(Path(model.path)) if Path(model.path).is_dir() else f"{model.path}@{_commit(model)}"
    return digest([weights, str(layer), model.dtype])


def _commit(model: ReadModel) -> str:
    from transformers import AutoConfig

    hub.look_up(model.path)
    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    return str(getattr(config, "_commit_hash", None))
