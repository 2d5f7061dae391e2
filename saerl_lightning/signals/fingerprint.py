"""Digests (SHA-256) of files, models and prompts, used as cache keys. They do not prove where a file came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from saerl_lightning import hub
from saerl_lightning.records import Prompt
from saerl_lightning.signals.model import ReadModel

WHOLE = 256 * 2**20  # bytes; of larger files, only some blocks are read
BLOCKS, BLOCK = 64, 2**20
MODEL_FILES = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py", ".gguf"}


def digest(texts: Iterable[str]) -> str:
    """Returns the digest of a list of strings. Different lists have different digests."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def digest_prompts(prompts: Sequence[Prompt]) -> str:
    """Returns the digest of the prompts' uids and messages, in order."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(json.dumps([prompt.uid, [dict(message) for message in prompt.messages]], sort_keys=True).encode())
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """Returns the digest of a file's size and bytes. From 256 MiB on, only 64 blocks are read, with the first and last."""
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
    """Returns the digest of a folder's files with certain suffixes: names and contents, without sub-folders."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in set(suffixes))
    return digest(word for path in files for word in (path.name, digest_file(path)))


def digest_model(model: ReadModel) -> str:
    """Returns the digest of everything that determines hidden states: files or hub commit, layer and dtype.

    Raises:
        InputError: if the model does not exist, or does not have the layer.
    """
    layer, _, _ = model.config()
    weights = digest_folder(Path(model.path)) if Path(model.path).is_dir() else f"{model.path}@{_commit(model)}"
    return digest([weights, str(layer), model.dtype])


def _commit(model: ReadModel) -> str:
    from transformers import AutoConfig

    hub.look_up(model.path)
    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    return str(getattr(config, "_commit_hash", None))
