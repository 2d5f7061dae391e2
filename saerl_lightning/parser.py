"""The command-line parser: a mistake is one line and exit code 2; values of arguments are never read from files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from saerl_lightning import shipped
from saerl_lightning.errors import InputError
from saerl_lightning.files import check_yaml, read_text, read_yaml
from saerl_lightning.mistakes import one_line, printed, strange_argument
from saerl_lightning.moved import at_new_paths, in_new_forms, old_flag

NULL = re.compile(r"=None$")
FUNCTION = re.compile(r"[^\s:]+\.py:[A-Za-z_]\w*")
# Among rewards also a function that can be imported; classes begin with a capital.
REWARD_FUNCTION = re.compile(rf"{FUNCTION.pattern}|[A-Za-z_][\w.]*:[A-Za-z_]\w*|(?:[A-Za-z_]\w*\.)+[a-z_]\w*")
REWARDS = ("rewards", "rewards+")
REWARDS_FLAG = re.compile(r"--(?:model\.)?(?:init_args\.)?rewards\+?")
LIBRARY: Callable[[str], Any] = get_loader("yaml")


def load_yaml(text: str) -> Any:
    """Parses YAML as jsonargparse does, after a check of its structure.

    Raises:
        InputError: if a key is repeated, or the text exceeds the limits of `check_yaml`.
    """
    check_yaml(text)
    try:
        return with_functions(in_new_forms(LIBRARY(at_new_paths(text))))
    except ValueError as error:
        raise InputError(f"{text[:40]!r}… holds a number of thousands of digits; write a smaller one") from error


def with_functions(loaded: Any) -> Any:
    """Writes out the short forms of a function among rewards, `my_rewards.py:accuracy` and `{function: …, weight: …}`.

    Args:
        loaded: Content of a config, or a flag's value.
    """
    if isinstance(loaded, dict):
        return {key: _rewards(value) if key in REWARDS else with_functions(value) for key, value in loaded.items()}
    if isinstance(loaded, list):
        return [with_functions(_function(each, FUNCTION)) for each in loaded]
    return loaded


def with_rewards_flags(words: Sequence[str]) -> list[str]:
    """Writes out the short forms of functions in the values of `--model.rewards` and `--model.rewards+`.

    Args:
        words: Words of a command line.
    """
    found = list(words)
    for place, word in enumerate(words):
        flag, given, value = word.partition("=")
        if not REWARDS_FLAG.fullmatch(flag):
            continue
        if given:
            found[place] = f"{flag}={_written_out(value)}"
        elif place + 1 < len(words):
            found[place + 1] = _written_out(words[place + 1])
    return found


def _written_out(text: str) -> str:
    try:
        value = LIBRARY(text)
    except (yaml.YAMLError, ValueError):
        return text  # the parser will say what is wrong with it
    rewards = _rewards(value)
    return text if rewards == value else json.dumps(rewards)


def _rewards(value: Any) -> Any:
    """Rewards, or one of them, with functions written out."""
    if isinstance(value, list):
        return [_rewards(each) for each in value]
    return with_functions(_function(value, REWARD_FUNCTION))


def _function(element: Any, form: re.Pattern[str]) -> Any:
    """Returns a list's element, as a FunctionReward where it is a short form of one."""
    given = {"function": element} if isinstance(element, str) and form.fullmatch(element) else element
    if isinstance(given, dict) and isinstance(given.get("function"), str) and "class_path" not in given:
        return {"class_path": "FunctionReward", "init_args": given}
    return element


set_loader("yaml", load_yaml, (yaml.YAMLError,))


class Refused(SystemExit):
    """A mistake on a command line, in one line. No `Exception`: jsonargparse would catch it and word it once more.

    Args:
        said: What is wrong, and where all options are listed.
    """

    def __init__(self, said: str) -> None:
        super().__init__(2)
        self.said = said

    def __str__(self) -> str:
        """Returns the line."""
        return self.said


class RunParser(LightningArgumentParser):
    """LightningArgumentParser with one-line errors, in which only `null` means None.

    The value of an argument is never read as the name of a configuration file: `--data.train FILE` names prompts. Only
    `-c FILE` and whole sections (`--model FILE`, `--data FILE`) read configuration files.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        self.followers: dict[str, str] = {}  # linked argument -> the argument that sets it

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Namespace:
        """Parses a command line, or an argument of a class inside it.

        jsonargparse passes `null` to the parser of a class as the text 'None', which an argument of type str would
        accept as text. So the outer parser refuses 'None', and the parser of a class turns it back into null.
        """
        given = [at_new_paths(each) for each in (sys.argv[1:] if args is None else args)]
        if not self.exit_on_error:  # jsonargparse's inner parser for the arguments of a class
            return super().parse_args([NULL.sub("=null", each) for each in given], *more, **settings)
        if any(each == "None" or NULL.search(each) for each in given):
            self.error("'None' is no value; write null for nothing")
        for told in filter(None, [*map(old_flag, given), strange_argument(given)]):
            self.error(told)
        try:
            placed = with_rewards_flags(shipped.at_their_places(given))
        except InputError as error:
            self.error(str(error))
        return super().parse_args(placed, *more, **settings)

    def parse_path(self, path: Any, *more: Any, **settings: Any) -> Namespace:
        """Parses a config file.

        Raises:
            InputError: if the file is not UTF-8, repeats a key, exceeds the limits of `check_yaml`, or sets a linked
                argument.
        """
        # A pipe can be read only once, and a remote file has no path here: jsonargparse reads both.
        if not Path(path).is_file():
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
        """Adds a class's arguments. Their values are never read from files."""
        return super().add_class_arguments(*args, **{**settings, "sub_configs": False})

    def add_function_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """Adds a function's arguments. Their values are never read from files."""
        return super().add_function_arguments(*args, **{**settings, "sub_configs": False})

    def add_method_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """Adds a method's arguments. Their values are never read from files."""
        return super().add_method_arguments(*args, **{**settings, "sub_configs": False})

    def link_arguments(self, source: Any, target: str, *more: Any, **settings: Any) -> None:
        """Links two arguments, and records the link so that a configuration which sets the linked one is refused."""
        super().link_arguments(source, target, *more, **settings)
        self.followers[target] = str(source)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Words the error in one line.

        Raises:
            Refused: with that line; `cli.run` raises it as an InputError.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", self)
        said = one_line(message, parser._option_string_actions, getattr(self, "args", ()))
        raise Refused(f"{printed(said)} ({parser.prog.replace(' [options]', '')} --help lists all options)")


def dropped_callbacks(files: Iterable[Path]) -> list[str]:
    """Describes which callbacks are lost because a later configuration file replaces the whole list.

    Args:
        files: Configuration files given with `-c`, in order. Each was already parsed.

    Returns:
        One sentence per file that replaces callbacks.
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
    """Returns the class names, without modules, of one callback or of a list."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    paths = [each.get("class_path", "") if isinstance(each, dict) else each for each in listed if each]
    return [str(path).rpartition(".")[2] for path in paths]
