"""Draft: our configuration as it is converted, each setting with where it comes from, and what could not be carried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from saerl_lightning.migration.arguments import Given

WITH_ARGUMENTS = ("model", "data")  # sections whose settings stand under init_args


@dataclass
class Draft:
    """Settings found so far.

    Args:
        given: Arguments of the file that is converted.
        settings: Values by path, with a comment each.
        above: Comments above a setting, a line each, by its path.
        lost: Reasons by the name of the argument that could not be carried.
        notes: Sentences about what was carried, but is not quite the same.
        other_reward: Why the reward is not that of the file, and what stands in its place; empty if it was carried.
    """

    given: Given
    settings: dict[str, tuple[object, str]] = field(default_factory=dict)
    above: dict[str, list[str]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    other_reward: str = ""

    def put(self, path: str, value: object, *names: str) -> None:
        """Sets a value.

        Args:
            path: Path of the setting, such as `model.sampling.temperature`.
            value: Value to write.
            names: Arguments that it comes from, for the comment; a text that names none is the comment itself.
        """
        said = [
            f"{name}, its default" if name not in self.given and self.given.trainer.find(name) else name
            for name in names
        ]
        self.settings[path] = (value, "; ".join(said))

    def lose(self, name: str, why: str) -> None:
        """Records that an argument could not be carried; what was said of it first stands."""
        self.lost.setdefault(name, why)

    def yaml(self, head: str) -> str:
        """Writes the settings as a configuration.

        Args:
            head: Comment at the top, without `#`.
        """
        tree: dict[str, Any] = {}
        for path, leaf in self.settings.items():
            *above, last = path.split(".")
            if above and above[0] in WITH_ARGUMENTS:
                above.insert(1, "init_args")
            node = tree
            for name in above:
                node = node.setdefault(name, {})
            node[last] = (*leaf, *self.above.get(path, []))
        comment = "".join(f"# {line}\n".replace("# \n", "#\n") for line in head.splitlines())
        return comment + "".join(_lines(tree, ""))


def made(class_path: str, **init_args: object) -> dict[str, object]:
    """Returns an object as YAML names it: its class and its arguments."""
    return {"class_path": class_path, "init_args": init_args} if init_args else {"class_path": class_path}


def _lines(tree: Mapping[str, object], indent: str) -> list[str]:
    lines = []
    for name, node in tree.items():
        if isinstance(node, tuple):
            value, comment, *above = node
            lines += [f"{indent}# {each}\n" for each in above]
            if isinstance(value, dict) and "init_args" in value:
                lines.append(f"{indent}{_flow(name)}:  # {comment}\n")
                lines += _lines({"class_path": (value["class_path"], "")}, indent + "  ")
                arguments = {each: (kept, "") for each, kept in value["init_args"].items()}
                lines += _lines({"init_args": arguments}, indent + "  ")
                continue
            lines.append(f"{indent}{_flow(name)}: {_flow(value)}{f'  # {comment}' * bool(comment)}\n")
        else:
            assert isinstance(node, dict)
            lines += [f"{indent}{name}:\n", *_lines(node, indent + "  ")]
    return lines


def _flow(value: object) -> str:
    """Returns a value in YAML's flow form, on one line."""
    written = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return written.removesuffix("\n").removesuffix("\n...")
