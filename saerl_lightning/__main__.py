"""Entry point of `saerl`, `main.py` and `-m saerl_lightning`. Answers simple commands before Lightning is imported.

The import of Lightning's command line takes seconds. Mistyped verbs, `--version`, `configs` and `init` don't need it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from saerl_lightning import __version__, launcher
from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.mistakes import printed
from saerl_lightning.verbs.names import EVERY, QUICK

HELP = {
    "configs": (
        "usage: saerl configs [NAME]\n\n"
        "Lists the shipped configs with what each is for, or prints the one of that name."
    ),
    "init": (
        "usage: saerl init DIR\n\n"
        "Writes a first run into a new folder: a commented run.yaml, a reward function, ten prompts, a README and a tiny\n"
        "random policy. saerl fit -c DIR/run.yaml then trains on a CPU in under a minute."
    ),
}


def main() -> None:
    """Runs the command line. After invalid input, prints one line and exits with code 2."""
    args = sys.argv[1:]
    launcher.follow()
    try:
        if answered(args):
            return
    except InputError as error:
        _end(str(error))
    except BrokenPipeError:  # `saerl configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        from saerl_lightning.files import said_of_disk

        said = said_of_disk(error)
        if said is None:
            raise
        _end(said)
    try:
        from saerl_lightning.cli import main as compose
    except KeyboardInterrupt:  # users often press Ctrl-C during the seconds of this import
        sys.exit(130)
    compose()


def answered(args: list[str]) -> bool:
    """Answers commands that need no Lightning, and returns whether it did.

    Args:
        args: Command-line arguments without the program's name.

    Raises:
        InputError: for an unknown verb, and for wrong arguments of `configs` and `init`.
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
        print(HELP[verb])
    else:
        _quick(verb, rest)
    return True


def _quick(verb: str, rest: list[str]) -> None:
    """Runs `configs` or `init`."""
    usage = HELP[verb].partition("\n")[0]
    if flag := next((each for each in rest if each.startswith("-")), None):
        raise InputError(f"'{flag[:120]}' is not accepted; {usage}")
    run: Callable[..., None]
    if verb == "configs":
        from saerl_lightning.verbs.configs import configs as run

        fewest = 0
    else:
        from saerl_lightning.verbs.init import init as run

        fewest = 1
    if not fewest <= len(rest) <= 1:
        raise InputError(f"'{verb}' has {len(rest)} arguments; {usage}")
    run(*rest)


def _end(said: str) -> None:
    print(f"error: {printed(said)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
