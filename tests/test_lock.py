"""Locks: one at a time, dead holders here count for nothing at once, those of other machines by their heartbeat."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from saerl_lightning import lock
from saerl_lightning.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from saerl_lightning import lock
with lock.held(Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen:
    root = str(Path(lock.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert child.stdout.readline() == "held\n"
    return child


def foreign(path: Path, silent_for: float, **changes: object) -> str:
    """A lock that a process on another machine left, whose last heartbeat is some seconds old."""
    mine = json.loads(lock.Holder.here().text())
    text = json.dumps(mine | {"host": "gpu-7", "process": 4242, "token": "f" * 32} | changes)
    path.write_text(text)
    then = time.time() - silent_for
    os.utime(path, (then, then))
    return text


def test_a_living_process_is_named_and_a_killed_one_counts_for_nothing_at_once(tmp_path):
    path = tmp_path / "thing.lock"
    child = holder(path)
    named = f"the thing is in use by process {child.pid} on {re.escape(socket.gethostname())}; wait for it"
    with pytest.raises(InputError, match=named), lock.held(path, "the thing"):
        raise AssertionError("two hold it")
    assert path.exists()
    child.send_signal(signal.SIGKILL)  # a zombie until it is waited for, which is dead enough
    time.sleep(0.2)
    with lock.held(path, "the thing"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    child.wait()
    child.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_a_lock_go_with_it_if_they_are_empty(tmp_path):
    with lock.held(tmp_path / "a/b/thing.lock", "the thing"):
        (tmp_path / "a/c").mkdir()
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["c"]


def test_another_machines_lock_holds_while_its_heart_beats(tmp_path):
    path = tmp_path / "thing.lock"
    text = foreign(path, silent_for=lock.VOID - 60)
    with pytest.raises(InputError, match=rf"process 4242 on gpu-7, which can't be looked up.*delete '{path}'"):  # noqa: SIM117
        with lock.held(path, "the thing"):
            raise AssertionError("two hold it")
    assert path.read_text() == text
    foreign(path, silent_for=lock.VOID + 60)
    with lock.held(path, "the thing"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_the_holder(tmp_path):
    path = tmp_path / "thing.lock"
    foreign(path, silent_for=0, host=socket.gethostname(), process=os.getpid(), born="17")
    with lock.held(path, "the thing"):
        pass
    foreign(path, silent_for=0, host=socket.gethostname(), world="another container", process=2**22 + 1)
    with pytest.raises(InputError, match="can't be looked up"), lock.held(path, "the thing"):
        raise AssertionError("a number of another container was looked up in this one")


def test_the_heart_beats_and_a_lock_that_was_lost_is_left_alone(tmp_path, monkeypatch, caplog):
    path = tmp_path / "thing.lock"
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.held(path, "the thing"):
        os.utime(path, (1, 1))
        until = time.monotonic() + 5
        while path.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2
        text = foreign(path, silent_for=0)
    assert path.read_text() == text


def test_of_many_that_find_a_void_lock_one_gets_it(tmp_path):
    """Eight threads at once, again and again: never two inside, and all get in in turn."""
    path, inside, most = tmp_path / "thing.lock", [], []

    def work() -> None:
        with lock.awaited(path, "the thing"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    for _ in range(3):
        foreign(path, silent_for=lock.VOID + 60)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 24 and list(tmp_path.iterdir()) == []


def test_an_empty_lock_file_of_an_older_version_is_void_when_it_is_old(tmp_path):
    path = tmp_path / "thing.lock"
    path.write_text("")
    with pytest.raises(InputError, match="an unknown machine"), lock.held(path, "the thing"):
        raise AssertionError("held")
    os.utime(path, (1, 1))
    with lock.held(path, "the thing"):
        pass


def test_where_there_are_no_second_names_the_file_is_still_made_exclusively(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    path = tmp_path / "thing.lock"
    with lock.held(path, "the thing"), pytest.raises(InputError, match=f"process {os.getpid()} "):  # noqa: SIM117
        with lock.held(path, "the thing"):
            raise AssertionError("two hold it")
