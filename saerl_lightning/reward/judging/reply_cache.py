"""ReplyCache: keeps a judge's replies on disk, so that no question is paid for twice.

Every process appends to a file of its own and reads those of all others, so that no lock is needed, on network file
systems neither. A line that a kill or a full disk left unfinished is no reply.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saerl_lightning.reward.judging.reply import Reply


def key_of(endpoint: str, body: Mapping[str, Any]) -> str:
    """Digests all that decides a reply: the server's address and the whole request, model and sampling included.

    Args:
        endpoint: Address that is asked.
        body: Body of the request.
    """
    whole = json.dumps([endpoint, body], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class ReplyCache:
    """Replies by the digests of their questions, in a folder that any number of processes may share.

    The places of the replies are held in memory, some 200 bytes each; their texts stay on disk.

    Args:
        folder: Folder of the replies, made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, int]] | None = None  # file and offset by key; None before the first look
        self._own: io.FileIO | None = None

    def get(self, key: str) -> Reply | None:
        """Returns the reply of a key; None if there is none."""
        if self._places is None:
            self._places = {key: (file, start) for file in self._files() for key, start in _keys(file)}
        if key not in self._places:
            return None
        path, start = self._places[key]
        try:
            with path.open("rb") as file:
                file.seek(start)
                record = json.loads(file.readline())
            return Reply(record["text"], record["cut"]) if record["key"] == key else None
        except (OSError, ValueError, LookupError, TypeError):  # deleted or changed since
            return None

    def add(self, key: str, reply: Reply) -> None:
        """Writes a reply to the end of this process's file.

        Args:
            key: Digest of the question.
            reply: Reply without a failure.

        Raises:
            OSError: if the disk is full or read-only.
        """
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._own = io.FileIO(self.folder / name, "ab")
        path, start = Path(str(self._own.name)), self._own.tell()
        line = json.dumps({"key": key, "text": reply.text, "cut": reply.cut}).encode() + b"\n"
        if self._own.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if self._places is not None:
            self._places[key] = (path, start)

    def close(self) -> None:
        """Closes this process's file. The next look reads the folder again."""
        if self._own is not None:
            self._own.close()
        self._own = self._places = None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


def _keys(file: Path) -> Iterator[tuple[str, int]]:
    """Yields the key and the offset of each whole line."""
    start = 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                if line.endswith(b"\n") and isinstance(record["text"], str) and isinstance(record["cut"], bool):
                    yield str(record["key"]), start
            except (ValueError, LookupError, TypeError, RecursionError):
                pass  # of a process that was killed as it wrote
            start += len(line)
