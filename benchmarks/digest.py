"""Whether two nests of numbers are equal bit for bit, in one line of text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch


def digest(value: Any) -> str:
    """SHA-256 over a nest of dicts and lists, tensors by their bytes, in order."""
    sha = hashlib.sha256()
    for piece in _pieces(value):
        sha.update(piece)
    return sha.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else repr(value.item()).encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{key!r}:".encode()
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}]".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield repr(value).encode()
