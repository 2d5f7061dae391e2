"""A lock file: lets one process at a time work on a file or folder, also across machines that share a file system.

The file is created exclusively, because network file systems support this reliably, and `flock` often not. It names its
holder. If the holder runs on this machine, its process is looked up, and the lock is void once the process has ended.
If it runs on another machine, only its heartbeat is visible: the modification time of the file, which the holder
renews.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from saerl_lightning.errors import InputError

BEAT = 20.0  # seconds between heartbeats
VOID = 300.0  # seconds without a heartbeat after which a lock of another machine is void

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Args:
        host: Host name of the machine.
        process: Process number on the machine.
        born: Start time of the process, because process numbers are used again.
        world: Identifier of the machine's boot and container. Process numbers are valid only there.
        token: Random text that identifies one acquisition of the lock.
    """

    host: str
    process: int
    born: str
    world: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """Describes this process, with a new token."""
        born = start_time(os.getpid()) or ""
        return cls(socket.gethostname(), os.getpid(), born, _world(), uuid.uuid4().hex)

    @classmethod
    def read(cls, path: Path) -> Holder:
        """Reads the holder from a lock file; returns an unknown holder if the content is not readable.

        Raises:
            FileNotFoundError: if the lock is free.
        """
        text = path.read_text(errors="replace")
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return cls("an unknown machine", 0, "", "", f"unknown-{len(text)}")

    @property
    def is_near(self) -> bool:
        """Whether the holder's process can be looked up from here."""
        return (self.host, self.world) == (socket.gethostname(), _world())

    @property
    def is_gone(self) -> bool:
        """Whether the holder's process was looked up and has ended."""
        return self.is_near and start_time(self.process) != self.born

    def text(self) -> str:
        """Returns the content of the lock file."""
        return json.dumps(asdict(self))


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file during the block. Folders made for it are removed again if they are empty.

    Args:
        path: Path of the lock file.
        what: Description of the locked thing, which begins the error message.

    Raises:
        InputError: if another process holds the lock; the message names the process and the machine.
    """
    with _folder_for(path):
        if (holder := _take(path, mine := Holder.here())) is not None:
            raise InputError(_refusal(path, what, holder))
        with _kept(path, mine):
            yield


@contextlib.contextmanager
def awaited(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file during the block; waits first while another process holds it."""
    with _folder_for(path):
        mine, said = Holder.here(), False
        while (holder := _take(path, mine)) is not None:
            if not said:
                log.warning("waiting for process %d on %s, which works on %s", holder.process, holder.host, what)
            said = True
            time.sleep(0.2)
        with _kept(path, mine):
            yield


def beside(path: Path) -> Path:
    """Returns the path of the lock for a file or folder that can't contain its own lock."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """Makes the lock's folder, and at the end removes the new folders that are empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()


@contextlib.contextmanager
def _kept(path: Path, mine: Holder) -> Iterator[None]:
    """Renews the lock's heartbeat during the block, and removes the lock if this process still holds it."""
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine, over), daemon=True, name=f"heartbeat of {path}")
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with contextlib.suppress(OSError):
            if Holder.read(path) == mine:
                path.unlink()


def _beat(path: Path, mine: Holder, over: threading.Event) -> None:
    while not over.wait(BEAT):
        # A network file system may be unavailable for a while.
        with contextlib.suppress(OSError):
            if Holder.read(path) != mine:
                log.warning("%s was taken over: this process showed no sign of life for %.0f s", path, VOID)
                return
            os.utime(path)


def _take(path: Path, mine: Holder) -> Holder | None:
    """Tries to acquire the lock; returns None on success, else the holder."""
    own = path.with_name(f"{path.name}.{mine.token}")
    try:
        own.write_text(mine.text())
    except OSError as error:  # name the folder, not the temporary file, which users don't know
        raise OSError(error.errno, error.strerror, str(path.parent)) from error
    try:
        while True:
            try:
                _create(path, own)
                return None
            except FileExistsError:
                pass
            # The file may disappear here, if its holder releases it: then try again.
            with contextlib.suppress(FileNotFoundError):
                holder = Holder.read(path)
                if not holder.is_gone and (holder.is_near or _silence(path, own) < VOID):
                    return holder
                if _replace(path, own, holder):
                    return None
    finally:
        own.unlink(missing_ok=True)


def _create(path: Path, own: Path) -> None:
    """Links the complete file under the lock's name. On file systems without hard links, writes it there exclusively."""
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("x") as file:
            file.write(own.read_text())


def _replace(path: Path, own: Path, holder: Holder) -> bool:
    """Replaces a void lock by this process's. Returns False if another process may be doing so."""
    # Two processes may both find the lock void. Only the one that creates this file may replace the lock.
    turn = path.with_name(f"{path.name}.{holder.token}.void")
    try:
        turn.open("x").close()
    except FileExistsError:
        if _silence(turn, own) > BEAT:  # the process that created the file was killed
            turn.unlink(missing_ok=True)
        time.sleep(0.05)
        return False
    try:
        if Holder.read(path) != holder:
            return False
        own.replace(path)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _silence(path: Path, own: Path) -> float:
    """Returns the seconds since a file's last heartbeat, by the file system's clock (machines' clocks may differ)."""
    os.utime(own)
    return own.stat().st_mtime - path.stat().st_mtime


def _refusal(path: Path, what: str, holder: Holder) -> str:
    who = f"{what} is in use by process {holder.process} on {holder.host}"
    if holder.is_near:
        return f"{who}; wait for it to end, or end it"
    return (
        f"{who}, which can't be looked up from here; wait for it to end, or, if you know that it is dead, delete '{path}' "
        f"(it counts for nothing {VOID:.0f} s after its last heartbeat)"
    )


def _world() -> str:
    """Identifies the boot and the container that process numbers belong to; "" if the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def start_time(process: int) -> str | None:
    """Returns the start time of a process in clock ticks, "" if unknown, or None if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _signalled(process)
    return None if state in "ZX" else fields[18]


def _signalled(process: int) -> str | None:
    """Without /proc: returns "" if the process can be sent a signal, else None."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
