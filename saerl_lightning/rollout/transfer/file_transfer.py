"""FileTransfer: weights as safetensors files in a folder that trainer and servers see."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from saerl_lightning.errors import InputError, RunStopped, first_line
from saerl_lightning.files import whole_file
from saerl_lightning.ranges import Positive, require_in_range
from saerl_lightning.rollout.serving.connection import LOAD_ADAPTERS, UNLOAD_ADAPTERS, VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.transfer.transfer import WeightTransfer

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder for each run is made in it
WORKER = "saerl_lightning.rollout.transfer.worker.Worker"


class FileTransfer(WeightTransfer):
    """Writes the weights to a folder, from which each server reads them.

    The folder must be seen by the servers under the same path, as the same user: memory of one machine (/dev/shm), or a
    network file system. Servers that `saerl serve` started are asked whether they see it. Files are written whole and
    deleted after the sync. At most one file's weights are held in memory.

    Args:
        folder: Folder for the weights; null takes /dev/shm, or the folder for temporary files where there is none.
        file_gb: Size of a file in GiB, above which the next one is begun.
    """

    def __init__(self, folder: str | None = None, file_gb: Positive = 1.0) -> None:
        self.folder = folder
        self.file_gb = file_gb
        self._own: Path | None = None  # of this run, in `folder`
        self._adapters: Path | None = None  # that the servers have
        require_in_range(self)

    sends_adapters = True

    def server_flags(self) -> tuple[str, ...]:
        """The worker that says whether it sees a file."""
        return ("--worker-extension-cls", WORKER)

    def check(self, fleet: Fleet, settings: dict[VLLMServer, dict[str, Any]]) -> None:
        """Lets each server that can read a file written now.

        Raises:
            InputError: if a server does not see it, or the folder can't be written to.
        """
        probe, text = self._place() / "probe", uuid.uuid4().hex
        probe.write_text(text)
        asked = [each for each in fleet.alive if settings[each]["parallel_config"]["worker_extension_cls"] == WORKER]
        for server in asked:
            body = {"method": "read_probe", "args": [str(probe)]}
            answer = fleet.run(server.call(fleet.client, "/collective_rpc", body, limit_s=fleet.timeout_s))
            if any(found != text for found in answer["results"]):
                raise InputError(
                    f"the server {server.url} does not see what is written to '{self._place().parent}' here; write the "
                    "path of a folder that both see: engine.transfer.folder, e.g. on a network file system"
                )
        for server in set(fleet.alive) - set(asked):
            if not server.is_near:
                log.warning("the server %s can't be asked whether it sees '%s'", server.url, self._place().parent)
        probe.unlink()

    def send(self, named_tensors: Iterable[tuple[str, Tensor]], fleet: Fleet) -> None:
        """Writes the files; each server reads them; they are deleted."""
        place = Path(tempfile.mkdtemp(prefix="weights-", dir=self._place()))
        try:
            write_weights(named_tensors, place, int(self.file_gb * 2**30))
            fleet.each("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(place)}})
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def send_adapters(self, folder: Path, name: str, fleet: Fleet) -> None:
        """Copies the adapters to the run's folder, where the servers read them; the former ones are unloaded.

        Every version has a name of its own, by which vLLM tells cached prefixes apart.

        Raises:
            RunStopped: if they can't be written, as on a full disk.
        """
        former, self._adapters = self._adapters, self._place() / name
        try:
            shutil.copytree(folder, self._adapters)
            _flush(self._adapters)
        except OSError as error:
            raise _unwritten(error) from error
        body = {"lora_name": name, "lora_path": str(self._adapters)}
        for server, said in fleet.each(LOAD_ADAPTERS, body).items():
            if not said.startswith("Success"):
                fleet.give_up(server, f"did not say that it has taken the adapters (it said {said!r:.60})")
        if former is not None:
            fleet.each(UNLOAD_ADAPTERS, {"lora_name": former.name})
            shutil.rmtree(former, ignore_errors=True)

    def close(self) -> None:
        """Deletes the run's folder."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
        self._own = self._adapters = None

    def _place(self) -> Path:
        """The run's own folder, made at the first call."""
        if self._own is None:
            folder = Path(self.folder or (MEMORY if MEMORY.is_dir() else tempfile.gettempdir()))
            folder.mkdir(parents=True, exist_ok=True)
            self._own = Path(tempfile.mkdtemp(prefix="saerl-weights-", dir=folder))
        return self._own


def write_weights(named_tensors: Iterable[tuple[str, Tensor]], folder: Path, file_bytes: int) -> None:
    """Writes weights as safetensors files, one after the other, each whole and flushed to the disk.

    Args:
        named_tensors: Names and tensors; two may share their memory, as a tied output head does.
        folder: Folder for the files.
        file_bytes: Size above which the next file is begun.

    Raises:
        RunStopped: if they can't be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        for number, part in enumerate(_parts(named_tensors, file_bytes)):
            with whole_file(folder / f"model-{number:05d}.safetensors") as staged:
                save_file(part, staged)
        _flush(folder)
    except (SafetensorError, OSError) as error:
        raise _unwritten(error) from error


def _unwritten(error: Exception) -> RunStopped:
    return RunStopped(
        f"the weights can't be written for the servers: {first_line(error)}; free some space, or write "
        "engine.transfer.folder"
    )


def _parts(named_tensors: Iterable[tuple[str, Tensor]], file_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Collects tensors on the host until they are large enough for a file; safetensors takes no shared memory."""
    part: dict[str, Tensor] = {}
    places: set[int] = set()
    size = 0
    for name, tensor in named_tensors:
        held = tensor.detach().cpu().contiguous()
        if held.untyped_storage().data_ptr() in places or held.untyped_storage().nbytes() > held.nbytes:
            held = held.clone()
        places.add(held.untyped_storage().data_ptr())
        part[name] = held
        size += held.nbytes
        if size >= file_bytes:
            yield part
            part, places, size = {}, set(), 0
    if part:
        yield part


def _flush(folder: Path) -> None:
    """Flushes the folder's entries, so that another machine sees the files under their names."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
