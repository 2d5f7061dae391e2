"""Arguments of another trainer: their default, their counterpart here, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.migration.references import followed
from saerl_lightning.migration.values import Kind, anything

if TYPE_CHECKING:
    from saerl_lightning.migration.draft import Draft


@dataclass(frozen=True)
class Argument:
    """An argument of another trainer.

    Args:
        name: Name in the other trainer, with dots between levels; one that ends in `.*` stands for all below.
        default: Value that it has there when it is not given.
        ours: Setting here that it becomes; empty if there is none.
        how: Conversion in words; without a counterpart, the reason, or what to do instead.
        kind: Reader of its values.
        group: Conversion that takes it together with others, of `Trainer.conversions`; empty copies the value to `ours`.
        implied: Whether the other trainer's default is written when the file does not give the argument.
        nullable: Whether null is a value of its own; else it stands for the default.
    """

    name: str
    default: object = None
    ours: str = ""
    how: str = ""
    kind: Kind = anything
    group: str = ""
    implied: bool = True
    nullable: bool = False


def together(group: str, *rows: tuple[str, object, str, Kind, str]) -> tuple[Argument, ...]:
    """Returns the arguments of a group.

    Args:
        group: Name of their conversion; empty copies each.
        rows: Name, default, setting here, kind and conversion in words of each.
    """
    return tuple(Argument(name, default, ours, how, kind, group) for name, default, ours, kind, how in rows)


@dataclass(frozen=True)
class Trainer:
    """Another trainer, as far as its arguments go.

    Args:
        title: Name for readers, such as "TRL".
        version: Version that the table was compared with.
        table: Arguments that the trainer knows.
        conversions: Functions that convert the arguments of a group, by the group's name.
        defaults: Defaults, of its version first, of each argument by name; none if the table has every argument itself.
    """

    title: str
    version: str
    table: Sequence[Argument]
    conversions: Mapping[str, Callable[[Given, Draft], None]]
    defaults: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def find(self, name: str) -> Argument | None:
        """Returns the argument of that name, or the one that stands for all below it; None if there is none."""
        own = next((each for each in self.table if each.name == name), None)
        if own is not None or not self._knows(name):
            return own
        parts = [each for each in self.table if _holds(each, name)]
        return max(parts, key=lambda each: len(each.name), default=None)

    def suggestion(self, name: str) -> str:
        """Returns what an argument that there is not may have been meant for, as the beginning of a sentence."""
        names = [each for each in (*(each.name for each in self.table), *self.defaults) if not each.endswith("*")]
        above, _, last = name.rpartition(".")
        beside = {each.rpartition(".")[2].lower(): each for each in names if each.rpartition(".")[0] == above}
        near = [beside[each] for each in get_close_matches(last.lower(), beside, n=2, cutoff=0.6)]
        elsewhere = [each for each in dict.fromkeys(names) if each.rpartition(".")[2].lower() == last.lower()]
        near = near or get_close_matches(name, elsewhere, n=2, cutoff=0.5)
        return f"did you mean {' or '.join(near)}? " if near else "not here, because "

    def is_default(self, name: str, value: object, values: Mapping[str, object]) -> bool:
        """Whether an argument has its own default, which may refer to other arguments.

        Args:
            name: Name of the argument.
            value: Value of the argument.
            values: Arguments of the file by name.
        """
        own = [each.default for each in self.table if each.name == name]
        defaults = [*own, *self.defaults.get(name, ())]
        return any(_plain(value) in (each, _plain(followed(each, name, values))) for each in defaults)

    def _knows(self, name: str) -> bool:
        """Whether there is such an argument; one below a mapping without known names is free."""
        if not self.defaults or name in self.defaults:
            return True
        parts = name.split(".")
        above = [".".join(parts[:count]) for count in range(1, len(parts))]
        if any({} in self.defaults.get(each, ()) for each in above):
            return True
        roots = [each.name[:-1] for each in self.table if each.name.endswith(".*") and _holds(each, name)]
        return any(not any(each.startswith(root) for each in self.defaults) for root in roots)


def _plain(value: object) -> object:
    """Returns a number that was written as text, as YAML reads 1e-6, as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _holds(argument: Argument, name: str) -> bool:
    return argument.name.endswith(".*") and f"{name}.".startswith(argument.name[:-1])


class Given:
    """Arguments of a file, read by name; the other trainer's default stands in for those not given.

    Args:
        trainer: Trainer whose arguments they are.
        values: Arguments of the file by name.
        processes: Number of processes that the file was run with.
    """

    def __init__(self, trainer: Trainer, values: Mapping[str, object], processes: int) -> None:
        self.trainer = trainer
        self.values = values
        self.processes = processes

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> object:
        """Returns the argument's value as its kind reads it.

        Raises:
            InputError: naming the argument, the value and what to write.
        """
        argument = next(each for each in self.trainer.table if each.name == name)
        value = self.values.get(name, argument.default)
        if value is None and not argument.nullable:
            value = argument.default
        if value is None:
            return None
        try:
            return argument.kind.read(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{name} is {str(value)[:120]!r}, which can't be converted; write {argument.kind.says}"
            ) from error

    def number(self, name: str) -> float:
        """Returns the value of an argument that is always a number."""
        value = self[name]
        assert isinstance(value, int | float), name
        return value

    def whole(self, name: str) -> int:
        """Returns the value of an argument that is always a whole number."""
        return int(self.number(name))

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Returns a value that must be one of those named.

        Raises:
            InputError: naming the value and those that there are.
        """
        value = str(self[name])
        if value not in known:
            raise InputError(f"{name} is {value[:120]!r}; write one of {', '.join(known)}{did_you_mean(value, known)}")
        return value
