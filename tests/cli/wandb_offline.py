"""Reads back what W&B left on disk in offline mode: a run's records, its history, its config, its tables."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


def wandb_records(path: Path) -> Iterator:
    """Records of a `.wandb` file: a LevelDB log of blocks of 32 KiB, each with pieces (crc, length, kind, bytes)."""
    from wandb.proto import wandb_internal_pb2

    log, position, record, block = path.read_bytes(), 7, b"", 32768
    while position + 7 <= len(log):
        if block - position % block < 7:  # too short for a piece: padding
            position += block - position % block
            continue
        length, kind = struct.unpack_from("<HB", log, position + 4)
        record += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def values(items) -> dict[str, object]:
    """Items of a history, a summary or a config; a nested key is joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@dataclass(frozen=True)
class OfflineRun:
    """The only W&B run below a run folder, or the one in a folder of W&B's."""

    run_dir: Path
    own: Path | None = None

    @cached_property
    def folder(self) -> Path:
        [folder] = [self.own] if self.own else (self.run_dir / "wandb").glob("offline-run-*")
        return folder

    @cached_property
    def records(self) -> list:
        return list(wandb_records(next(self.folder.glob("*.wandb"))))

    def of_kind(self, kind: str) -> list:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self):
        """Project, group, name, tags."""
        [run] = self.of_kind("run")
        return run

    @property
    def history(self) -> list[dict]:
        """What was logged, a dict a call."""
        return [values(row.item) for row in self.of_kind("history")]

    @property
    def config(self) -> dict:
        """What `RunConfig` gave W&B."""
        return {key: value for each in self.of_kind("config") for key, value in values(each.update).items()}["config"]

    @cached_property
    def tables(self) -> dict[str, dict]:
        """Tables by key; W&B puts the row's number and a digest behind it in the file's name."""
        root = self.folder / "files/media/table"
        paths = [path.relative_to(root) for path in root.rglob("*.table.json")]
        return {f"{path.parent}/{path.name.rsplit('_', 2)[0]}": json.loads((root / path).read_text()) for path in paths}
