"""A lock file: one process at a time works on a file or folder, on this machine and on others that share the file system.

The file is created exclusively, which network file systems do at once or not at all (`flock` they often only pretend). It
says who holds it. A holder on this machine is looked up: once its process is gone, the lock is void. Of a holder on another
machine only its heartbeat is seen: the file's time, which it renews.
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

BEAT = 20.0  # seconds between two heartbeats
VOID = 300.0  # seconds without a heartbeat after which another machine's lock counts for nothing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Args:
        host: Name of its machine.
        process: Its number there.
        born: When it was started; a number alone may belong to a later process.
        world: The machine's boot and the container, in which the number means something.
        token: Of this one lock.
    """

    host: str
    process: int
    born: str
    world: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """This process, with a fresh token."""
        born = _born(os.getpid()) or ""
        return cls(socket.gethostname(), os.getpid(), born, _world(), uuid.uuid4().hex)

    @classmethod
    def read(cls, path: Path) -> Holder:
        """Who holds a lock file; nobody known, where it does not say.

        Raises:
            FileNotFoundError: if it is free.
        """
        text = path.read_text(errors="replace")
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return cls("an unknown machine", 0, "", "", f"unknown-{len(text)}")

    @property
    def is_near(self) -> bool:
        """Whether its process can be looked up from here."""
        return (self.host, self.world) == (socket.gethostname(), _world())

    @property
    def is_gone(self) -> bool:
        """Whether its process, which can be looked up, is no more."""
        return self.is_near and _born(self.process) != self.born

    def text(self) -> str:
        """Content of the lock file."""
        return json.dumps(asdict(self))


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file while the block runs; folders that were made for it go again if they are left empty.

    Args:
        path: The lock file.
        what: The thing that is locked, to begin the refusal with.

    Raises:
        InputError: if another process holds it, naming the process and its machine.
    """
    with _place(path):
        if (holder := _take(path, mine := Holder.here())) is not None:
            raise InputError(_refusal(path, what, holder))
        with _kept(path, mine):
            yield


@contextlib.contextmanager
def awaited(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file while the block runs, once whoever holds it has left it."""
    with _place(path):
        mine, said = Holder.here(), False
        while (holder := _take(path, mine)) is not None:
            if not said:
                log.warning("waiting for process %d on %s, which works on %s", holder.process, holder.host, what)
            said = True
            time.sleep(0.2)
        with _kept(path, mine):
            yield


def beside(path: Path) -> Path:
    """Where the lock of a file or folder is that must not hold one itself."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _place(path: Path) -> Iterator[None]:
    """Makes the lock's folders, and removes those of them that are empty in the end."""
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
    """Renews the lock while the block runs, and removes it if it is still ours."""
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
        with contextlib.suppress(OSError):  # a file system that is away for a while
            if Holder.read(path) != mine:
                log.warning("%s was taken over: this process showed no sign of life for %.0f s", path, VOID)
                return
            os.utime(path)


def _take(path: Path, mine: Holder) -> Holder | None:
    """Makes the lock file ours, or tells who holds it."""
    own = path.with_name(f"{path.name}.{mine.token}")
    try:
        own.write_text(mine.text())
    except OSError as error:  # the name that says nothing to a user is ours
        raise OSError(error.errno, error.strerror, str(path.parent)) from error
    try:
        while True:
            try:
                _create(path, own)
                return None
            except FileExistsError:
                pass
            with contextlib.suppress(FileNotFoundError):  # it was left this moment: try again
                holder = Holder.read(path)
                if not holder.is_gone and (holder.is_near or _silence(path, own) < VOID):
                    return holder
                if _replace(path, own, holder):
                    return None
    finally:
        own.unlink(missing_ok=True)


def _create(path: Path, own: Path) -> None:
    """Gives a whole file a second name, if that is free; where a file system has no second names, writes it there."""
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("x") as file:
            file.write(own.read_text())


def _replace(path: Path, own: Path, holder: Holder) -> bool:
    """Puts our file in place of a void one; of several processes that want to, one may."""
    turn = path.with_name(f"{path.name}.{holder.token}.void")
    try:
        turn.open("x").close()
    except FileExistsError:
        if _silence(turn, own) > BEAT:  # whoever took the turn was killed in it
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
    """Seconds since a file's last heartbeat, by the clock of the file system, which just wrote our own."""
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
    """The boot and the container in which process numbers mean something; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _born(process: int) -> str | None:
    """When a process was started, in the system's ticks; None if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _signalled(process)
    return None if state in "ZX" else fields[18]


def _signalled(process: int) -> str | None:
    """Without /proc: whether the process can be sent a signal."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
