"""Programs that do not want to be graded: none passes, none reaches what it should not, and none leaves anything behind."""

# ruff: noqa: E501 (an enemy a line)
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saerl_lightning.records import Prompt
from saerl_lightning.reward.code_reward import CodeReward
from tests.reward.examples import rollouts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
SECRET = "4815162342"
SCRIPT = Prompt("s", ({"role": "user", "content": "?"},), json.dumps({"inputs": ["x\n"], "outputs": [f"{SECRET}\n"]}))
ASSERTS = Prompt("a", ({"role": "user", "content": "?"},), f"assert f(2) == {SECRET}")
CHECK = f"def check(candidate):\n    assert candidate(2) == {SECRET}\n    assert 10 < candidate(2)"
FUNCTION = Prompt("h", ({"role": "user", "content": "?"},), "x", columns={"test": CHECK, "entry_point": "f"})
OTHER = Prompt("o", ({"role": "user", "content": "?"},), f"assert sorted([f(2)]) == sorted([{SECRET}]) and f(2) != 1")
INSIDE = Prompt(  # needs what only the program's own process has
    "i", ({"role": "user", "content": "?"},), f"assert (lambda y: sorted([y]) == sorted([{SECRET}]) and y != 1)(f(2))"
)


@pytest.fixture(scope="module")
def reward():
    made = CodeReward(workers=1, deadline_s=2.0, memory_mb=512)
    yield made
    made.close()


def grade(reward: CodeReward, asked: Prompt, code: str) -> float:
    return float(reward([asked], rollouts([f"```python\n{code}\n```"])))


def ancestors(pid: int) -> list[int]:
    """Numbers of the process's parents, up to the first."""
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def of_a_neighbour(pid: int) -> bool:
    """Whether another process that runs tests beside this one started it; what has lost its parents is nobody's."""
    above = ancestors(pid)
    return os.getppid() in above and os.getpid() not in above


def left_behind() -> list[str]:
    """Command lines of processes that run our confined script, or what an enemy made of it."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        if of_a_neighbour(int(place.parent.name)):
            continue
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith((b"jobs/confined.py", b"enemy-of-rewards")) for word in words):
            found.append(b" ".join(words).decode())
    return found


AS_SCRIPT = {
    "forks without end": "import os\nwhile True:\n    os.fork()",
    "forks and ignores errors": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "is a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)",
    "starts another program": "import subprocess\nprint(subprocess.run(['cat', 'SECRET'], capture_output=True, text=True).stdout)",
    "becomes another program": "import os\nos.execv('/bin/cat', ['cat', 'SECRET'])",
    "prints without end": "while True:\n    print('x' * 1000000)",
    "sleeps": "import time\ntime.sleep(100)",
    "computes without end": "while True: pass",
    "ignores signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\nwhile True: pass",
    "takes all memory": "kept = []\nwhile True:\n    kept.append(bytearray(10_000_000))",
    "leaves at once": "import os\nos._exit(0)",
    "kills its parent": f"import os\nos.kill(os.getppid(), 9)\nprint({SECRET})",
    "kills its group": f"import os\nos.killpg(0, 9)\nprint({SECRET})",
    "stops its parent in C": f"import ctypes, os\nassert ctypes.CDLL(None).kill(os.getppid(), 19) == 0\nprint({SECRET})",
    "limits its parent": f"import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\nprint({SECRET})",
    "reads the tests": "print(open('SECRET').read())",
    "reads its parent": "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())\nprint(open('SECRET').read())",
    "reads from stdin": "import sys\nsys.stdin.seek(0)\nprint(sys.stdin.read())",
    "writes a file": f"open('WRITTEN', 'w').write('x')\nprint({SECRET})",
    "appends to a file": f"import os\nos.write(os.open('SECRET', os.O_WRONLY | os.O_APPEND), b'x')\nprint({SECRET})",
    "deletes a file": f"import os\nos.unlink('SECRET')\nprint({SECRET})",
    "renames a file": f"import os\nos.rename('SECRET', 'WRITTEN')\nprint({SECRET})",
    "calls home": f"import socket\nsocket.create_connection(('127.0.0.1', PORT)).send(b'x')\nprint({SECRET})",
    "calls home by UDP": f"import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))\nprint({SECRET})",
    "overflows the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + 1\nf()",
    "closes everything": "import os\nos.closerange(0, 64)\nwhile True: pass",
    "prints and then fails": f"print({SECRET})\nraise ValueError",
    "prints and then hangs": f"print({SECRET}, flush=True)\nimport os\nos.close(1)\nwhile True: pass",
    "is deep": "(" * 5000 + ")" * 5000,
    "reads the keys": "import os\nprint(os.environ['REWARD_TEST_KEY'])",
    "clears the death signal": f"import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0\nprint({SECRET})",
}


@pytest.mark.parametrize("name", AS_SCRIPT)
def test_a_script_that_cheats_gets_nothing(name, reward, tmp_path, monkeypatch):
    monkeypatch.setenv("REWARD_TEST_KEY", SECRET)
    secret, written = tmp_path / "secret", tmp_path / "written"
    secret.write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = AS_SCRIPT[name].replace("SECRET", str(secret)) if "'SECRET'" in AS_SCRIPT[name] else AS_SCRIPT[name]
        code = code.replace("WRITTEN", str(written)).replace("PORT", str(server.getsockname()[1]))
        began = time.monotonic()
        assert grade(reward, SCRIPT, code) == 0, reward.last_failure
        assert time.monotonic() - began < 20
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert secret.read_text() == SECRET and not written.exists()
    assert left_behind() == []
    assert grade(reward, SCRIPT, f"print({SECRET})") == 1  # the grader lives
    assert not reward.pool.failures


EQUALS_ALL = "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return True\n    __lt__ = __gt__ = __eq__\n"
HIDDEN = "    __hash__ = None\nAny.__module__ = 'builtins'\nAny.__qualname__ = 'int'\n"
AS_FUNCTION = {
    "equals everything": f"{EQUALS_ALL}def f(x): return Any()",
    "equals everything as int": f"{EQUALS_ALL.replace('Any:', 'Any(int):')}def f(x): return Any()",
    "equals everything in a list": f"{EQUALS_ALL.replace('Any:', 'Any(list):')}def f(x): return Any([1])",
    "equals everything and hides": f"{EQUALS_ALL}{HIDDEN}def f(x): return Any()",
    "leaves in the function": "import os\ndef f(x): os._exit(0)",
    "leaves politely": "import sys\ndef f(x): sys.exit(0)",
    "leaves before the tests": "import os\ndef f(x): return x\nos._exit(0)",
    "hangs": "def f(x):\n    while True: pass",
    "hangs at once": "while True: pass",
    "says that it passed": 'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'{"value": "True"}\\n\' * 9)\n    except OSError: pass',
    "speaks nonsense": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[' * 100000 + b'\\n')\n    except OSError: pass\ndef f(x): return 1",
    "floods the channel": "import os\nfor n in range(3, 64):\n    try:\n        while True: os.write(n, b'x' * 100000)\n    except OSError: pass",
    "breaks ==": "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.all = lambda x: True\ndef f(x): return 1",
    "returns too much": "def f(x): return 'x' * 100_000_000",
    "returns depth": "def f(x):\n    y = []\n    for i in range(100000): y = [y]\n    return y",
    "writes the tests": f"def f(x): return {SECRET} if open('/proc/self/fd/0').read() else 0",
}


@pytest.mark.parametrize("name", AS_FUNCTION)
def test_a_function_that_cheats_gets_nothing(name, reward):
    for asked in (ASSERTS, FUNCTION, OTHER, INSIDE):
        assert grade(reward, asked, AS_FUNCTION[name]) == 0, asked.uid
        assert left_behind() == []
    assert all(grade(reward, asked, f"def f(x): return {SECRET}") == 1 for asked in (ASSERTS, FUNCTION, OTHER, INSIDE))
    assert not reward.pool.failures


NEAR = "assert abs(f(2) - 1.5) < 1e-6"
OWN_TRUTH = "class A:\n    n = 0\n    def __bool__(s):\n        A.n += 1\n        return A.n > 1\n"
OWN_NUMBER = "class A:\n    def __sub__(s, o): return s\n    __abs__ = lambda s: s\n    __lt__ = lambda s, o: True\n"
ALTERS = {
    "a builtin's name": (NEAR, "def abs(x): return 0\ndef f(x): return 1"),
    "a builtin": (NEAR, "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 1"),
    "a module": ("assert math.isclose(f(2), 1.5)", "import math\nmath.isclose = lambda *a: True\ndef f(x): return 1"),
    "what sorted gives": ("assert sorted(f(2)) == sorted([1, 2])", "def sorted(x): return 0\ndef f(x): return [1]"),
    "what a number is": (NEAR, f"{OWN_NUMBER}def f(x): return A()"),
    "what is true, by turns": ("assert not f(2) and f(3)", f"{OWN_TRUTH}def f(x): return A()"),
    "the grader": (NEAR, "import __main__\n__main__._ran = lambda code, scope: 'True'\ndef f(x): return 0"),
    "what is said": (NEAR, "import __main__\n__main__.plain = lambda value: 1.5\ndef f(x): os._exit(0)"),
}


@pytest.mark.parametrize("name", ALTERS)
def test_code_that_alters_its_own_process_alters_no_assert(name, reward):
    test, code = ALTERS[name]
    right = {"what sorted gives": "[2, 1]", "what is true, by turns": "x == 3"}.get(name, "1.5")
    assert grade(reward, Prompt("n", ASSERTS.messages, test), code) == 0
    assert grade(reward, Prompt("n", ASSERTS.messages, test), f"def f(x): return {right}") == 1


def test_what_the_docs_say_it_does_not_protect_from(reward):
    """Code that knows the grader finds asserts in its own process, but neither a literal's value nor HumanEval's check."""
    knows = "import sys\nframe = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\n"
    knows += "import __main__\n__main__.spelled = lambda value: 'True'\n__main__._ran = lambda code, scope: 'True'"
    assert grade(reward, INSIDE, knows + "\ndef f(x): return 0") == 1
    assert grade(reward, OTHER, knows + "\ndef f(x): return 0") == 0
    assert grade(reward, FUNCTION, knows + "\ndef f(x): return 0") == 0
    assert grade(reward, ASSERTS, knows + "\ndef f(x): return 0") == 0


def test_a_killed_trainer_takes_the_program_with_it(tmp_path):
    (tmp_path / "train.py").write_text(
        "from tests.reward.test_code_enemies import *\n"
        "CodeReward(workers=1, deadline_s=100)([SCRIPT], rollouts(['import time; time.sleep(99)']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    trainer = subprocess.Popen([sys.executable, tmp_path / "train.py"], env=environment)
    until = time.monotonic() + 60
    while not left_behind() and time.monotonic() < until:
        time.sleep(0.2)
    assert left_behind()
    trainer.kill()
    trainer.wait()
    while left_behind() and time.monotonic() < until:
        time.sleep(0.2)
    assert left_behind() == []


ORPHANS = """
import subprocess, sys
from saerl_lightning.reward.jobs.program import adopt, end_orphans
adopt()
twice = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    if os.fork() == 0:\\n        time.sleep(600)\\n    os._exit(0)"
subprocess.run([sys.executable, "-c", twice, "enemy-of-rewards"])
end_orphans()
"""


def test_daemons_end_also_without_walls():
    subprocess.run([sys.executable, "-c", ORPHANS], check=True, timeout=60)
    assert left_behind() == []


def test_missing_walls_are_told_once(caplog):
    told = CodeReward()
    told._tell(["Landlock"])
    told._tell(["Landlock"])
    told._tell([])
    assert [message for message in caplog.messages if "without Landlock, which this machine does not have" in message]
    assert len(caplog.messages) == 1
