"""Arguments of another trainer: their default, their counterpart here, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError, did_you_mean
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
    """

    title: str
    version: str
    table: Sequence[Argument]
    conversions: Mapping[str, Callable[[Given, Draft], None]]

    def find(self, name: str) -> Argument | None:
        """Returns the argument of that name, or the one that stands for all below it; None if there is none."""
        for each in self.table:
            if each.name == name or (each.name.endswith(".*") and f"{name}.".startswith(each.name[:-1])):
                return each
        return None


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
        self.asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> object:
        """Returns the argument's value as its kind reads it.

        Raises:
            InputError: naming the argument, the value and what to write.
        """
        argument = next(each for each in self.trainer.table if each.name == name)
        self.asked.add(name)
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
