"""Entry point of `saerl`, `main.py` and `-m saerl_lightning`. Answers simple commands before Lightning is imported.

The import of Lightning's command line takes seconds. Mistyped verbs, `--version`, `configs`, `import` and `init` don't
need it.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path

from saerl_lightning.errors import InputError
from saerl_lightning.mistakes import printed
from saerl_lightning.ranks import launcher
from saerl_lightning.verbs.quick import answered


def main() -> None:
    """Runs the command line. After invalid input, prints one line and exits with code 2."""
    args = sys.argv[1:]
    atexit.register(_say_no_more)  # the first to be registered is the last to run
    launcher.follow()
    # Threads of torch that wait for each other by spinning take the time of the one that they wait for, where processes
    # share the cores: beside two busy ones a first run on two cores took 34 s, and 22 s so; alone 10.9 and 12.6 s. Read
    # once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    # As `python -m` does: classes and rewards that a config names may be the user's own, in the present folder. Behind all
    # others, so that no file there stands for an installed package.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    # Looking for garbage takes a tenth of this import, which leaves hardly any; its objects are never looked through again.
    gc.disable()
    try:
        from saerl_lightning.cli import main as compose
    except KeyboardInterrupt:  # users often press Ctrl-C during the seconds of this import
        sys.exit(130)
    gc.freeze()
    gc.enable()
    compose()


def _end(said: str) -> None:
    print(f"error: {printed(said)}", file=sys.stderr)
    sys.exit(2)


def _say_no_more() -> None:
    """Closes stderr before the interpreter is taken down.

    Triton then counts the objects that `gc.freeze` has kept, and would print 40 lines below a one-line error. To give
    them back to the garbage collector takes more than a second.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
