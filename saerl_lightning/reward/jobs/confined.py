"""A script that runs code of a model, or a test of it, behind walls which its process puts up. It imports nothing of ours.

It is started for one program, isolated, with two arguments: CHANNEL and LIMITS. CHANNEL is the number of a socket, on
which lines of JSON go to and fro; LIMITS are numbers, as JSON.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import errno
import importlib
import itertools
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NO_NEW_PRIVS, SET_SECCOMP, SET_PDEATHSIG = 38, 22, 1
ALLOW, FAIL = 0x7FFF0000, 0x00050000
LOAD, EQUAL, LEAST, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
NEWEST = 450  # system calls with higher numbers came later and are not known here
THREAD = 0x10000  # CLONE_THREAD
# Calls that a program without processes, sockets and files to write needs not; numbers on x86_64 and on aarch64.
DENIED = {
    "processes": "57/- 58/- 59/221 322/281 272/97 308/268 112/157 109/154",  # fork, exec, unshare, setns, setsid, setpgid
    "signals": "62/129 200/130 234/131 424/424 129/138 297/240",
    "other processes": "101/117 310/270 311/271 440/440 438/438 434/434 448/448 203/122 144/119 314/274 142/118 141/140",
    "sockets": "41/198",
    "memory that stays": "29/194 68/186 64/190 240/180 319/279 447/447",  # shmget, msgget, semget, mq_open, memfd
    "files": "85/- 76/45 87/- 263/35 82/- 264/38 316/276 83/- 258/34 84/- 88/- 266/36 86/- 265/37 133/- 259/33",
    "modes and owners": "90/- 91/52 268/53 92/- 93/55 94/- 260/54",
    "times and attributes": "132/- 235/- 280/88 261/- 188/5 189/6 190/7 197/14 198/15 199/16",
    "mounts": "165/40 166/39 155/41 161/51 430/430 432/432 428/428 429/429 442/442 304/265 303/264",
    "the kernel": "321/280 298/241 323/282 250/219 248/217 249/218 425/425 169/142 167/224 168/225 175/105 "
    "313/273 176/106 246/104 320/294 227/112 305/266 159/171 164/170 170/161 171/162 163/89 179/60 172/- 173/- 135/92 "
    "103/116 279/239 256/238 251/30",
}
NUMBERS = {  # of calls that are looked at more closely
    "x86_64": dict(clone=56, clone3=435, openat2=437, open=2, openat=257, prctl=157, prlimit64=302, fcntl=72, ioctl=16),
    "aarch64": dict(clone=220, clone3=435, openat2=437, openat=56, prctl=167, prlimit64=261, fcntl=25, ioctl=29),
}
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SPARE = 8 << 20
MOST_LISTED = 100_000  # things that a generator may give
MADE: dict[
    str, tuple[str, tuple[str, ...]]
] = {  # numbers and times without a literal: their module, and what makes them
    "complex": ("builtins", ("real", "imag")),  # its own text has no infinity
    "Fraction": ("fractions", ("numerator", "denominator")),
    "Decimal": ("decimal", ()),  # of its text
    "date": ("datetime", ("year", "month", "day")),
    "time": ("datetime", ("hour", "minute", "second", "microsecond")),
    "datetime": ("datetime", ("year", "month", "day", "hour", "minute", "second", "microsecond")),
    "timedelta": ("datetime", ("days", "seconds", "microseconds")),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
READ, READ_ANY, USE = 1 << 2, 1 << 2 | 1 << 3, 1 << 1 | 1 << 2  # rights of Landlock


# -- walls -------------------------------------------------------------------------------------------------------------


def confine(limits: dict[str, int]) -> list[str]:
    """Puts all walls up that this kernel has, for good. Returns the names of those that it has not."""
    for name, value in (
        ("CPU", limits["cpu_s"]),
        ("AS", limits["memory_bytes"]),
        ("FSIZE", 0),
        ("CORE", 0),
        ("NOFILE", 64),
        ("NPROC", 64),  # not for root
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if sys.platform != "linux":
        return ["seccomp", "Landlock"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os._exit(1)  # the grader was gone before it could be waited for
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    return [*_landlock(libc), *_seccomp(libc)]


def _landlock(libc: Any) -> list[str]:
    """Leaves only Python's own files to be read."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return ["Landlock"]
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ruled = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)  # files; ports; signals
    ruled = ruled[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(444, ruled, len(ruled), 0)
    for place, right in _readable():
        if os.path.exists(place):  # noqa: PTH110
            handle = os.open(place, os.O_PATH)
            libc.syscall(445, ruleset, 1, struct.pack("=Qi", right, handle), 0)
            os.close(handle)
    failed = libc.syscall(446, ruleset, 0) != 0
    os.close(ruleset)
    return ["Landlock"] if failed else []


def _readable() -> Iterator[tuple[str, int]]:
    for folder in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64"}:
        yield folder, READ_ANY
    yield from (("/etc/ld.so.cache", READ), ("/dev/null", USE), ("/dev/urandom", READ), ("/dev/zero", READ))


def _seccomp(libc: Any) -> list[str]:
    """Makes system calls fail that a program of its kind needs not."""
    machine = platform.machine()
    if machine not in MACHINES or sys.maxsize < 2**32:
        return ["seccomp"]
    code = b"".join(struct.pack("HBBI", *each) for each in _filter(machine))
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(kept))
    return ["seccomp"] if libc.prctl(SET_SECCOMP, 2, program, 0, 0) else []


def _filter(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """The filter's instructions: (code, jump if true, jump if false, value)."""
    numbers = NUMBERS[machine]
    place = 0 if machine == "x86_64" else 1
    denied = [pair.split("/")[place] for pairs in DENIED.values() for pair in pairs.split()]
    no, absent = (GIVE, 0, 0, FAIL | errno.EPERM), (GIVE, 0, 0, FAIL | errno.ENOSYS)
    yield from ((LOAD, 0, 0, 4), (EQUAL, 1, 0, MACHINES[machine]), no, (LOAD, 0, 0, 0))
    yield from ((LEAST, 0, 1, NEWEST), absent)  # also the 32-bit forms on x86_64
    for number in denied:
        if number != "-":
            yield from ((EQUAL, 0, 1, int(number)), no)
    for name in ("clone3", "openat2"):  # what they ask for lies in memory that a filter can't see; libc has another way
        yield from ((EQUAL, 0, 1, numbers[name]), absent)
    for name, argument, test, value in (
        ("clone", 0, "without", THREAD),
        ("open", 1, "with", WRITING),
        ("openat", 2, "with", WRITING),
        ("prctl", 0, "is", SET_PDEATHSIG),
        ("prlimit64", 0, "is not", 0),
        ("fcntl", 1, "is", 8),  # F_SETOWN, F_SETOWN_EX: signals to others
        ("fcntl", 1, "is", 15),
        ("ioctl", 1, "is", 0x8901),
        ("ioctl", 1, "is", 0x8902),
    ):
        if name in numbers:
            compare = {
                "without": (ANY_BIT, 1, 0),
                "with": (ANY_BIT, 0, 1),
                "is": (EQUAL, 0, 1),
                "is not": (EQUAL, 1, 0),
            }
            yield (EQUAL, 0, 4, numbers[name])
            yield (LOAD, 0, 0, 16 + 8 * argument)
            yield (*compare[test], value)
            yield no
            yield (LOAD, 0, 0, 0)
    yield (GIVE, 0, 0, ALLOW)


# -- code --------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Puts the walls up, then runs a program, or a library and the checks of it, or a test of another process's library."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    lines = channel.makefile("rb")
    missing = confine(json.loads(sys.argv[2]))
    bytearray(SPARE)  # where Python alone fills the memory, it ends here and not in the program
    task = json.loads(lines.readline())
    _say(channel, {"missing": missing})
    if "library" in task:
        _check(task["library"], lines, channel)
    elif "test" in task:
        _test(task["test"], task["name"], lines, channel)
    elif "asserts" in task:
        for code, calls in task["asserts"]:
            _assert(code, calls, lines, channel)
    else:
        lines.close()
        channel.close()
        exec(compile(task["program"], "solution.py", "exec"), {"__name__": "__main__"})  # noqa: S102 (that is the job)


def _check(code: str, lines: Any, channel: socket.socket) -> None:
    """Runs the code, and only then reads what it is checked by, a line of checks after the other."""
    scope: dict[str, Any] = {"__name__": "solution"}
    exec(compile(code, "solution.py", "exec"), scope)  # noqa: S102
    _say(channel, {"loaded": True})
    scope["plain_"] = plain
    for line in lines:
        asked = json.loads(line)
        exec(compile(asked["setup"], "setup.py", "exec"), scope)  # noqa: S102
        for check in asked["checks"]:
            try:
                said = _valued(check, scope) if "value" in check else _ran(check["run"], scope)
            except BaseException as error:  # SystemExit too
                _say(channel, {"key": asked["key"], "error": f"{type(error).__name__}: {error}"[:200]})
            else:
                _say(channel, {"key": asked["key"], "value": said})


def _valued(check: dict[str, Any], scope: dict[str, Any]) -> str:
    """The literal of an expression; with `listed`, that of the list of what a generator, a range or a view gives."""
    value = eval(check["value"], scope)  # noqa: S307
    if check.get("listed") and not isinstance(value, (*COPIES, bytes)) and hasattr(value, "__iter__"):
        value = value.tolist() if hasattr(value, "tolist") else list(itertools.islice(value, MOST_LISTED))
    return spelled(value)


def _ran(code: str, scope: dict[str, Any]) -> str:
    exec(compile(code, "check.py", "exec"), scope)  # noqa: S102
    return "True"


def _test(code: str, name: str, lines: Any, channel: socket.socket) -> None:
    """Runs a test that defines `check`, and calls it with a function that another process has. Says whether it held.

    Names that the test uses and does not define are modules of Python, or functions of the other process too. Arguments and
    results go between the processes as literals.
    """
    tree = ast.parse(code)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - vars(builtins).keys()
    scope: dict[str, Any] = {"__name__": "test"}
    for each in used:
        scope[each] = importlib.import_module(each) if each in sys.stdlib_module_names else _there(each, lines, channel)

    def run() -> None:
        exec(compile(tree, "test.py", "exec"), scope)  # noqa: S102
        scope["check"](_there(name, lines, channel))

    _say_whether(run, channel)


def _assert(code: str, calls: list[str], lines: Any, channel: socket.socket) -> None:
    """Runs an assert about functions that another process has. Says whether it held."""
    scope: dict[str, Any] = {"__name__": "test", **{each: _there(each, lines, channel, listed=True) for each in calls}}
    _say_whether(lambda: exec(compile(code, "test.py", "exec"), scope), channel)  # noqa: S102


def _say_whether(run: Callable[[], object], channel: socket.socket) -> None:
    try:
        run()
    except BaseException as error:
        _say(channel, {"held": False, "error": f"{type(error).__name__}: {error}"[:200]})
    else:
        _say(channel, {"held": True})


def _there(function: str, lines: Any, channel: socket.socket, listed: bool = False) -> Callable[..., Any]:
    """A function that asks the other process for what its function of that name gives."""

    def call(*given: Any, **named: Any) -> Any:
        keywords = "".join(f", {key}={spelled(value)}" for key, value in named.items())
        _say(channel, {"call": f"{function}(*{spelled(given)}{keywords})", "listed": listed})
        said = json.loads(lines.readline())
        if "value" not in said:
            raise AssertionError(said["error"])
        return valued(said["value"])

    return call


def _say(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def plain(value: Any) -> Any:
    """Returns a value whose comparisons mean what they say: containers and numbers as Python's own, no class of the code.

    Raises:
        AssertionError: if it is an object of a class that the code defines.
    """
    for kind, copied in COPIES.items():
        if isinstance(value, kind):
            return copied(value)
    kind = type(value)
    home = sys.modules.get(kind.__module__)
    if kind.__flags__ & 1 << 9 and getattr(home, kind.__qualname__, None) is not kind:  # made by a class statement
        raise AssertionError(f"the result is a {kind.__name__}, whose comparisons nobody can trust")
    return value


COPIES: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: lambda value: int.__int__(value),
    float: lambda value: float.__float__(value),
    str: lambda value: str.__str__(value),
    list: lambda value: [plain(each) for each in list.__iter__(value)],
    tuple: lambda value: tuple(plain(each) for each in tuple.__iter__(value)),
    dict: lambda value: {plain(key): plain(each) for key, each in dict.items(value)},
    set: lambda value: {plain(each) for each in set.__iter__(value)},
    frozenset: lambda value: frozenset(plain(each) for each in frozenset.__iter__(value)),
}


def spelled(value: Any) -> str:
    """Writes a result as a literal; numbers and times of Python's library, which have none, as a call: Fraction(1, 2).

    Raises:
        AssertionError: if it has no literal.
    """
    value = plain(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spelled(key)}: {spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{spelled(each)}, " for each in value) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(map(spelled, value)) + "}" if value else "set()"
    if isinstance(value, float):
        return repr(value).replace("inf", "1e999").replace("nan", "None")  # NaN equals nothing
    if value is None or isinstance(value, int | str | bytes):
        return repr(value)
    if hasattr(value, "item") and hasattr(value, "tolist"):  # NumPy's
        return spelled(value.tolist())
    home, parts = MADE.get(type(value).__name__, ("", ()))
    if home == type(value).__module__ and getattr(value, "tzinfo", None) is None:
        given = [getattr(value, part) for part in parts] or [str(value)]
        return f"{type(value).__name__}({', '.join(map(spelled, given))})"
    raise AssertionError(f"the result is a {type(value).__name__}, which has no literal")


def valued(text: str) -> Any:
    """Returns the value that `spelled` wrote.

    Raises:
        ValueError: if the text is anything else; also SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError.
    """
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in MADE:
            return getattr(importlib.import_module(MADE[name][0]), name)(*map(_value, args))
        case ast.List() | ast.Tuple() | ast.Set():
            kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
            return kind(map(_value, node.elts))
        case ast.Dict(keys=keys) if None not in keys:
            return {_value(key): _value(each) for key, each in zip(keys, node.values, strict=True) if key is not None}
        case _:
            return ast.literal_eval(node)


if __name__ == "__main__":
    sys.path[:] = [each for each in sys.path if each != str(Path(__file__).parent)]
    main()
