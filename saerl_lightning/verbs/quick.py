"""Verbs that are answered before Lightning is imported: `configs`, `import`, `init`, `--version`, and mistyped ones."""

from __future__ import annotations

from collections.abc import Callable

from saerl_lightning import __version__
from saerl_lightning.errors import InputError, did_you_mean, program
from saerl_lightning.verbs.names import EVERY, QUICK

HELP = {
    "configs": (
        "usage: saerl configs [NAME]\n\n"
        "Lists the shipped configs with what each is for, or prints the one of that name."
    ),
    "import": (
        "usage: saerl import trl|verl FILE [--out FILE] [--processes N]\n\n"
        "Writes the settings of another trainer's FILE as a configuration, an overlay for grpo.yaml, and lists what\n"
        "it could not carry. FILE: YAML or JSON as TrlParser reads, or verl's YAML (nested, or a list of overrides), or\n"
        "lines or a script with key=value.\n"
        "--out: file to write; by default FILE's name with _saerl.yaml at its end, in this folder. Nothing is overwritten.\n"
        "--processes: processes that TRL ran with, 1 by default: its batch sizes are those of one process."
    ),
    "init": (
        "usage: saerl init DIR\n\n"
        "Writes a first run into a new folder: a commented run.yaml, a reward function, ten prompts, a README and a tiny\n"
        "random policy. saerl fit -c DIR/run.yaml then trains on a CPU in under a minute."
    ),
}


def answered(args: list[str]) -> bool:
    """Answers commands that need no Lightning, and returns whether it did.

    Args:
        args: Command-line arguments without the program's name.

    Raises:
        InputError: for an unknown verb, and for wrong arguments of `configs`, `import` and `init`.
    """
    verb, rest = (args[0], args[1:]) if args else ("", [])
    if verb == "--version":
        print(f"saerl_lightning {__version__}")
        return True
    if not args or (verb not in EVERY and not verb.startswith("-")):
        said = f"'{verb[:120]}' is none of" if args else "no verb is given; write one of"
        raise InputError(f"{said} {', '.join(EVERY)}{did_you_mean(verb, EVERY)}")
    if verb not in QUICK:
        return False
    if any(each in ("-h", "--help") for each in rest):
        print(_help(verb))
    else:
        _quick(verb, rest)
    return True


def _quick(verb: str, rest: list[str]) -> None:
    """Runs `configs`, `import` or `init`."""
    usage = _help(verb).partition("\n")[0]
    flags = _flags(rest, usage) if verb == "import" else {}
    if flag := next((each for each in rest if each.startswith("-")), None):
        raise InputError(f"'{flag[:120]}' is not accepted; {usage}")
    run: Callable[..., None]
    fewest, most = 1, 1
    if verb == "configs":
        from saerl_lightning.verbs.configs import configs as run

        fewest = 0
    elif verb == "import":
        from saerl_lightning.verbs.import_file import import_file as run

        fewest, most = 2, 2
    else:
        from saerl_lightning.verbs.init import init as run
    if not fewest <= len(rest) <= most:
        raise InputError(f"'{verb}' has {len(rest)} arguments; {usage}")
    run(*rest, **flags)


def _help(verb: str) -> str:
    return HELP[verb].replace("saerl ", f"{program()} ")


def _flags(rest: list[str], usage: str) -> dict[str, str | int]:
    """Takes `--out FILE` and `--processes N` out of the arguments."""
    flags: dict[str, str | int] = {}
    for name in ("out", "processes"):
        row = next((row for row, each in enumerate(rest) if each.partition("=")[0] == f"--{name}"), None)
        if row is None:
            continue
        _, equals, value = rest.pop(row).partition("=")
        if not equals:
            value = rest.pop(row) if row < len(rest) else ""
        if not value or (name == "processes" and not (value.isascii() and value.isdigit() and int(value[:9]) >= 1)):
            raise InputError(f"--{name} is '{value[:120]}'; {usage}")
        flags[name] = int(value[:9]) if name == "processes" else value
    return flags
