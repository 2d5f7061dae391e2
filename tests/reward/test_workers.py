"""Graders that hang, crash or raise cost their own job and nothing else. Jobs are functions of the standard library."""

import contextlib
import logging
import math
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.reward import workers
from saerl_lightning.reward.workers import WorkerPool

DEADLINE_S = 2.0  # of tests in which a job hangs; those of a busy machine must be done by then
NEVER = 300.0


@contextlib.contextmanager
def pool(processes: int, deadline_s: float = NEVER, prepare=None) -> Iterator[WorkerPool]:
    graders = WorkerPool(processes, deadline_s, prepare)
    try:
        yield graders
    finally:
        graders.close()


def grader_pids() -> set[int]:
    """Processes that this one started with the graders' code and that have not ended."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found |= {child.pid} if workers.CODE in child.cmdline() else set()
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_order_is_kept_and_processes_stay_warm():
    with pool(2) as graders:
        assert graders.map(operator.truediv, [(i, 2) for i in range(100)]) == [i / 2 for i in range(100)]
        first = grader_pids()
        assert graders.map(math.sqrt, [(9,)]) == [3.0]
        assert grader_pids() == first
        assert len(first) == 2
        assert graders.map(math.sqrt, []) == []
    assert not grader_pids()


def test_a_hang_is_killed_and_its_worker_replaced():
    with pool(1, DEADLINE_S) as graders:
        graders.map(math.sqrt, [(1,)])
        hung = grader_pids()
        start = time.monotonic()
        nan, two, slow = graders.map(time.sleep, [(3600,)]) + graders.map(operator.add, [(1, 1), (2, 3)])
        assert math.isnan(nan)
        assert (two, slow) == (2.0, 5.0)
        assert DEADLINE_S <= time.monotonic() - start < 60
        assert not hung & grader_pids()
        assert not any(map(alive, hung))
        assert graders.failures == {"overrun": 1}


def test_a_loop_that_never_leaves_c_is_killed_too():
    with pool(1, DEADLINE_S) as graders:
        [nan] = graders.map(operator.pow, [(9, 9**9)])  # holds the GIL: no signal handler would run
        assert math.isnan(nan)
        assert graders.failures == {"overrun": 1}


def test_the_deadline_leaves_out_waiting_and_start_up():
    """Six jobs of 0.4 s on one worker take longer than a deadline of 2 s; so does a start-up of 2.2 s."""
    with pool(1, DEADLINE_S, prepare=partial(time.sleep, 2.2)) as graders:
        assert graders.map(eval, [("__import__('time').sleep(0.4) or 1",)] * 6) == [1.0] * 6


def test_a_crash_costs_its_own_job_only():
    with pool(2) as graders:
        results = graders.map(eval, [("1 + 1",), ("__import__('os')._exit(7)",), ("1 + 2",), ("1 + 3",)])
        assert math.isnan(results[1])
        assert [results[0], *results[2:]] == [2.0, 3.0, 4.0]
        assert graders.failures == {"crash": 1}


def test_an_exception_keeps_the_worker_and_warns_once(caplog):
    with pool(1) as graders, caplog.at_level(logging.WARNING):
        graders.map(math.sqrt, [(1,)])
        before = grader_pids()
        results = graders.map(math.sqrt, [(-1,), (4,), (-2,)])
        assert [math.isnan(r) for r in results] == [True, False, True]
        assert grader_pids() == before
        assert graders.failures == {"error": 2}
    [warning] = caplog.messages
    assert "ValueError" in warning


def test_a_worker_that_died_while_idle_costs_nothing():
    with pool(1) as graders:
        graders.map(math.sqrt, [(1,)])
        [pid] = grader_pids()
        os.kill(pid, signal.SIGKILL)
        # A process that is ending has no command line before it closes its pipe.
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert graders.map(math.sqrt, [(4,)]) == [2.0]
        assert not graders.failures


def test_a_pool_may_be_used_after_close():
    with pool(1) as graders:
        for _ in range(2):
            assert graders.map(math.sqrt, [(4,)]) == [2.0]
            graders.close()
            graders.close()
            assert not grader_pids()


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also in a suite that a shell started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_no_process_behind(interruptible):
    with pool(2) as graders:
        graders.map(math.sqrt, [(1,)])
        ours = threading.main_thread().ident
        threading.Timer(0.3, signal.pthread_kill, (ours, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            graders.map(time.sleep, [(3600,)] * 2)
        assert not grader_pids()
        assert graders.map(math.sqrt, [(4,)]) == [2.0]


def test_a_process_that_cannot_start_is_an_error():
    with pool(1, prepare=os.abort) as graders, pytest.raises(RuntimeError, match="before it was ready"):
        graders.map(math.sqrt, [(4,)])


KILLED_TRAINER = """
import os, signal, threading, time
import psutil
from saerl_lightning.reward.workers import WorkerPool

pool = WorkerPool(2, 1.0)
pool.map(time.perf_counter, [()] * 50)
print(*[child.pid for child in psutil.Process().children()], flush=True)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
pool.map(time.sleep, [(3600,)])
"""


def test_nothing_outlives_a_killed_trainer(tmp_path):
    """One worker is idle and one hangs in a job when the trainer gets SIGKILL."""
    script = tmp_path / "train.py"
    script.write_text(KILLED_TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    until = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("workers", "deadline_s", "message"), [(0, 1.0, "workers is 0"), (1, 0.0, "deadline_s is 0.0")]
)
def test_bad_arguments_are_refused(workers, deadline_s, message):
    with pytest.raises(InputError, match=message):
        WorkerPool(workers, deadline_s)


OWN_GRADERS = """
import time
from saerl_lightning.reward.workers import WorkerPool

BEST = 2


def share(score):
    if score < 0:
        time.sleep(3600)
    return score / BEST


print("started", flush=True)
pool = WorkerPool(1, 1.0)
print(pool.map(share, [(1,), (-1,), (2,)]))
"""


def told(*command: str | Path, given: str | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout


def test_functions_of_a_script_without_a_guard_and_of_standard_input_are_run(tmp_path):
    """Multiprocessing's processes would begin by running the script, or look for a file named <stdin>."""
    script = tmp_path / "train.py"
    script.write_text(OWN_GRADERS)
    for said in (told(sys.executable, script), told(sys.executable, "-", given=OWN_GRADERS)):
        assert said == "started\n[0.5, nan, 1.0]\n"


def test_what_a_job_started_ends_with_it(tmp_path):
    pid, start = tmp_path / "pid", "import subprocess, time; p = subprocess.Popen(['sleep', '3600']); "
    with pool(1, DEADLINE_S) as graders:
        graders.map(exec, [(f"{start} open({str(pid)!r}, 'w').write(str(p.pid)); time.sleep(3600)",)])
        assert graders.failures == {"overrun": 1}
    until = time.monotonic() + 10
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(pid.read_text()))


def test_each_result_says_what_became_of_its_job():
    with pool(1) as graders:
        one, failed, two = graders.run(operator.truediv, [(1, 1), (1, 0), (4, 2)])
    assert (one.value, one.failure, two.value) == (1.0, "", 2.0)
    assert failed.value is None and failed.failure == "raised ZeroDivisionError('division by zero')"
