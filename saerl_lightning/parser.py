"""The parser of the command line: only `-c` and whole sections read files, and what is wrong is said in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from saerl_lightning.errors import InputError
from saerl_lightning.files import check_yaml, read_text, read_yaml
from saerl_lightning.mistakes import one_line, printed
from saerl_lightning.moved import at_new_paths

NULL = re.compile(r"=None$")
LIBRARY: Callable[[str], Any] = get_loader("yaml")


def load_yaml(text: str) -> Any:
    """Parses a config's text or a flag's value as jsonargparse does, once its structure was looked at.

    Raises:
        InputError: if a key is repeated, or the text is nested or expanded beyond all use.
    """
    check_yaml(text)
    try:
        return LIBRARY(at_new_paths(text))
    except ValueError as error:
        raise InputError(f"{text[:40]!r}… holds a number of thousands of digits; write a smaller one") from error


set_loader("yaml", load_yaml, (yaml.YAMLError,))


class RunParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are one line, and in which `null`, and nothing else, means 'nothing'.

    An argument's value is never taken for the name of a file with configuration in it: `--data.train FILE` names prompts. A
    whole section (`--model FILE`, `--data FILE`) may be such a file, as `-c FILE` is.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        self.followers: dict[str, str] = {}  # argument -> the one it follows

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Namespace:
        """Parses a command line, or one argument of a class that stands in it.

        jsonargparse hands a `null` on to the parser of a class as the text 'None', which an argument that takes texts
        would take at its word. So the door refuses 'None', and a class's parser reads it as the null that was meant.
        """
        given = [at_new_paths(each) for each in (sys.argv[1:] if args is None else args)]
        if not self.exit_on_error:  # a class's own parser
            return super().parse_args([NULL.sub("=null", each) for each in given], *more, **settings)
        if any(each == "None" or NULL.search(each) for each in given):
            self.error("'None' is no value; write null for nothing")
        return super().parse_args(given, *more, **settings)

    def parse_path(self, path: Any, *more: Any, **settings: Any) -> Namespace:
        """Parses a config file.

        Raises:
            InputError: if it is not UTF-8, repeats a key, is nested or expanded beyond all use, or sets what follows from
                another argument.
        """
        if not Path(path).is_file():  # a pipe, which can be read only once, or a remote file
            return super().parse_path(path, *more, **settings)
        text = read_text(path, "the config")
        try:
            self._refuse_content(load_yaml(text))
        except yaml.YAMLError as error:
            raise InputError(f"the config '{path}' is no YAML: {' '.join(str(error).split())}") from error
        except InputError as error:
            raise InputError(f"the config '{path}': {error}") from error
        return super().parse_path(path, *more, **settings)

    def _refuse_content(self, config: Any) -> None:
        if not isinstance(config, dict):
            raise InputError(f"holds {config!r:.60}; write a mapping, as trainer: {{max_steps: 3}}")
        for follower, source in self.followers.items():
            value = config
            for part in follower.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                raise InputError(f"{follower} is '{value}', and follows from {source}; write {source} instead")

    # -- no argument's value is a file of configuration ------------------------------------------------------------------

    def add_class_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """Adds a class's arguments, none of which reads its value from a file."""
        return super().add_class_arguments(*args, **{**settings, "sub_configs": False})

    def add_function_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """Adds a function's arguments, none of which reads its value from a file."""
        return super().add_function_arguments(*args, **{**settings, "sub_configs": False})

    def add_method_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """Adds a method's arguments, none of which reads its value from a file."""
        return super().add_method_arguments(*args, **{**settings, "sub_configs": False})

    def link_arguments(self, source: Any, target: str, *more: Any, **settings: Any) -> None:
        """Makes an argument follow another, and notes it for the refusal of a config that sets it."""
        super().link_arguments(source, target, *more, **settings)
        self.followers[target] = str(source)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the mistake in one line and exits with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", self)
        said = one_line(message, parser._option_string_actions, getattr(self, "args", ()))
        sys.stderr.write(f"error: {printed(said)} ({parser.prog.replace(' [options]', '')} --help lists all options)\n")
        self.exit(2)


def dropped_callbacks(files: Iterable[Path]) -> list[str]:
    """Says, a sentence a file, which callbacks of the files before it a file replaces by a list of its own.

    Args:
        files: given with `-c`, in their order; each was read and parsed before.
    """
    said, held, holder = [], [], ""
    for file in files:
        section = (read_yaml(file, "the configuration") or {}).get("trainer") or {}
        if "callbacks" in section:
            own = _names(section["callbacks"])
            if lost := [name for name in held if name not in own]:
                said.append(
                    f"{file}: trainer.callbacks replaces the list of {holder}, so {', '.join(lost)} "
                    f"{'is' if len(lost) == 1 else 'are'} off; write callbacks+ to add to it"
                )
            held, holder = own, str(file)
        added = _names(section.get("callbacks+"))
        held, holder = held + added, holder or str(file)
    return said


def _names(callbacks: Any) -> list[str]:
    """Class names without their modules, of one callback or of a list."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    paths = [each.get("class_path", "") if isinstance(each, dict) else each for each in listed if each]
    return [str(path).rpartition(".")[2] for path in paths]
