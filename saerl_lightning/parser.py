"""The parser of the command line, which says what is wrong with it and nothing else.

jsonargparse prints every option there is before its message, and in the message every type it tried on the way down. Here
only the lines stay that lead to the mistake.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

NULL = re.compile(r"=None$")
NOISE = re.compile(
    r"[\s-]*(?:$|Does not validate against|Subtypes:|Errors:|Expected a path but|Expected a <class 'NoneType'>"
    r"|Given value type:|Given value: (?:NestedArg|Namespace)|Subclass types expect|a class path|a dict with)"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: ?(.*)")
MEANT = r"'\1' fits no class for this place; write a shipped class's name, or the dotted path of your own"


class RunParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are short, and in which `null`, and nothing else, means 'nothing'."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Namespace:
        """Parses a command line, or one argument of a class that stands in it.

        jsonargparse hands a `null` on to the parser of a class as the text 'None', which an argument that takes texts
        would take at its word. So the door refuses 'None', and a class's parser reads it as the null that was meant.
        """
        given = list(sys.argv[1:] if args is None else args)
        if not self.exit_on_error:  # a class's own parser
            return super().parse_args([NULL.sub("=null", each) for each in given], *more, **settings)
        if any(each == "None" or NULL.search(each) for each in given):
            self.error("'None' is no value; write null for nothing")
        return super().parse_args(given, *more, **settings)

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
    return UNKNOWN_CLASS.sub(MEANT, "\n".join(lines)).lstrip(" -")
