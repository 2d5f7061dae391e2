"""The parser of the command line, which says what is wrong with it and nothing else.

jsonargparse prints every option there is before its message, and in the message every type it tried on the way down. Here
only the lines stay that lead to the mistake.
"""

from __future__ import annotations

import re
import sys
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

NOISE = re.compile(
    r"[\s-]*(?:$|Does not validate against|Subtypes:|Errors:|Expected a path but|Expected a <class 'NoneType'>"
    r"|Given value type:|Given value: NestedArg|Subclass types expect|a class path|a dict with)"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: ?(.*)")
MEANT = r"'\1' fits no class for this place; write a shipped class's name, or the dotted path of your own"


class RunParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are short."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the mistake and exits with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        prog = getattr(ex, "subcommand_parser", self).prog.replace(" [options]", "")
        sys.stderr.write(f"error: {readable(message)}\n(all options: {prog} --help)\n")
        self.exit(2)


def readable(message: str) -> str:
    """Keeps the lines of jsonargparse's message that lead to the mistake."""
    lines = [line.rstrip() for line in message.splitlines() if not NOISE.match(line)]
    return UNKNOWN_CLASS.sub(MEANT, "\n".join(lines))
