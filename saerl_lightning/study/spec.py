"""StudySpec: a study's arms, which differ in a few configs and flags, with their seeds, budget and stages.

It is read from YAML and checked without parsing the arms' configurations: unknown names, an empty budget, no seeds.
`folder` checks whether the arms' flags parse.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from saerl_lightning.errors import InputError, did_you_mean, require_name
from saerl_lightning.ranges import Count, LongCount, Seed, require_in_range
from saerl_lightning.study.include import written_out

STRICT = ConfigDict(extra="forbid")
OWN_PROGRAMS = ("saerl", "main.py", "python")
# Folders of a study. An arm's folder has the arm's name, so no arm may have one of these.
OWN_FOLDERS = ("shared", "report", "causal", "drift")

Contrast = tuple[str, str]  # two arms; the difference is the first minus the second

# Random parts of a run besides its stages' products, by the names of its settings.
RANDOM_PARTS = {
    "order": "the order that the operations start from",
    "signals": "random and shuffled signals, and whatever else a signal draws",
    "reference": "the corrupted copies",
    "filtering": "which labels the filter's probe sees, its folds, random drops",
    "clustering": "where k-means starts, random clusters",
    "curriculum": "which labels the curriculum's probe sees, its folds, shuffled orders",
    "mixing": "what full mixing deals",
    "online": "what rules draw while training runs",
    "extra": "what further operations draw",
    "rewards": "what random rewards draw",
}


@dataclass(frozen=True)
class Arm:
    """One way to train: configs and flags after the study's base on the command line of `fit`.

    Args:
        like: Name of an arm further up, whose configs and flags stand before this arm's own; null starts from the base.
        configs: Paths of overlay configs, in order.
        flags: Flags of `fit`, which win over the overlays, each as `--name=value` or `--name value`.
        description: Purpose of the arm in one sentence.
    """

    __pydantic_config__ = STRICT

    configs: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    description: str = ""
    like: str | None = None


@dataclass(frozen=True)
class Budget:
    """The end of every run: a number of optimiser steps, or of generated tokens (after the step that reaches it)."""

    __pydantic_config__ = STRICT

    steps: Count | None = None
    generated_tokens: LongCount | None = None

    def __post_init__(self) -> None:
        require_in_range(self)

    @property
    def unit(self) -> Literal["steps", "tokens"]:
        """Unit of the budget, which is also the x axis of curves."""
        return "tokens" if self.steps is None else "steps"


@dataclass(frozen=True)
class Stage:
    """A product that all arms of a seed share, such as an SAE; made once a seed, before the first run.

    In `run`, `{made}` is the path of the product, `{scratch}` a folder that is deleted afterwards, `{seed}` the seed
    (the study's first one for a stage that all seeds share), and `{shared}/<makes>` the product of another stage for
    the seed. A line begins with `saerl` (or `main.py`, which is the same), `python`, or any other program.

    Args:
        name: Name of the stage, used in messages and in the study's `share`.
        makes: Path of the file or folder that is made; arms read it as `{shared}/<makes>`. The stage is skipped if it
            exists.
        run: Command lines, run one after the other.
        used_with: Second condition for counting the stage's seconds as a cost of an arm: text that the arm's configs
            and flags must contain. Needed if arms name the product's path without using it; see `stages.stages_used`.
    """

    __pydantic_config__ = STRICT

    name: str
    makes: str
    run: list[str]
    used_with: str = ""

    @property
    def pattern(self) -> str:
        """Regular expression that finds the product's path in a text, but not a longer path that begins with it."""
        return re.escape(f"{{shared}}/{self.makes}") + r"(?![\w.-])"

    def read_by(self, text: str) -> bool:
        """Whether a text contains the product's path."""
        return re.search(self.pattern, text) is not None

    def check(self) -> None:
        """Refuses command lines that can't be parsed or whose program is missing.

        Raises:
            InputError: naming the stage and the line.
        """
        if not self.run:
            raise InputError(f"shared stage '{self.name}' runs nothing; write run: [saerl ...]")
        for line in self.run:
            try:
                arguments = shlex.split(line)
            except ValueError as error:
                raise InputError(f"shared stage '{self.name}' runs {line!r}: {error}; close the quote") from error
            if not arguments:
                raise InputError(f"shared stage '{self.name}' has an empty line in run; take it out")
            if arguments[0] not in OWN_PROGRAMS and "{" not in arguments[0] and shutil.which(arguments[0]) is None:
                raise InputError(
                    f"shared stage '{self.name}' runs '{arguments[0]}', which is no program on this machine; begin the line "
                    f"with saerl, main.py, python, or a program that is on the PATH{did_you_mean(arguments[0], OWN_PROGRAMS)}"
                )


@dataclass(frozen=True)
class Gate:
    """The two arms that show whether a study's world can tell signals apart: an oracle must beat its null.

    Args:
        oracle: Arm whose operation knows the truth.
        null: Arm with the same operation that knows nothing.
        seeds: Seeds of the gate's runs, none of which is one of the study's.
    """

    __pydantic_config__ = STRICT

    oracle: str
    null: str
    seeds: list[Seed]

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True)
class StudySpec:
    """A comparison of arms over the same seeds on one budget, read from a YAML file.

    The file may `include` another one beside or below it, which holds what several studies have in common.

    Args:
        name: Name of the study; W&B groups its runs by this name.
        base: Paths of configs that all arms start from.
        arms: Arms by name; the name is also the name of the arm's folder.
        seeds: Seeds of each arm's runs. Everything random depends on them: stage products, order, signals, corrupted
            copies, labels, folds, clusters, mixing, rewards, new initial weights, and sampling.
        budget: Budget of every run.
        baseline: Arm that the others are compared with.
        metric: Logged metric of the primary comparison.
        primary: Arms of the primary family: Holm's method corrects the comparisons of end and cost to the target over
            these. Other arms are exploratory. An empty list takes all arms.
        contrasts: Pairs of arms, [first, second], whose differences first - second are the primary family instead, for a
            study that compares signals with each other; `primary` is empty then.
        shared: Stages whose products the arms of a seed share.
        share: Parts that are common to all seeds: names of stages, and of the random parts of a run (`RANDOM_PARTS`).
        flags: Flags of all arms, before the arms' own.
        description: Question that the study asks.
        gate: Oracle and null that must differ before the study is run; null asks for no gate.
    """

    __pydantic_config__ = STRICT

    name: str
    base: list[str]
    arms: dict[str, Arm]
    seeds: list[Seed]
    budget: Budget
    baseline: str
    metric: str = "val/macro/avg@k"
    primary: list[str] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    shared: list[Stage] = field(default_factory=list)
    share: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    description: str = ""
    gate: Gate | None = None

    @classmethod
    def read(cls, path: str | Path) -> StudySpec:
        """Reads and checks a study's file.

        Raises:
            InputError: if the file can't be read, or describes a study that can't be run.
        """
        return cls.of(written_out(path), path)

    @classmethod
    def of(cls, given: object, path: str | Path) -> StudySpec:
        """Makes a study of what a file holds.

        Args:
            given: Contents of the file.
            path: Path of the file, for messages.

        Raises:
            InputError: if the contents describe a study that can't be run.
        """
        try:
            spec = TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise InputError(f"the study '{path}' {_first(error)}") from error
        spec = replace(spec, arms=_complete(spec.arms), flags=_words(spec.flags))
        spec.check()
        return spec

    @property
    def family(self) -> list[Contrast]:
        """Pairs of the primary family, each the difference of the first arm from the second."""
        return list(self.contrasts) or self._against_baseline(self.primary or self.arms)

    @property
    def comparisons(self) -> list[Contrast]:
        """Pairs that are compared: the primary family, then every other arm against the baseline."""
        return list(dict.fromkeys([*self.family, *self._against_baseline(self.arms)]))

    def _against_baseline(self, arms: Iterable[str]) -> list[Contrast]:
        return [(arm, self.baseline) for arm in arms if arm != self.baseline]

    def check(self) -> None:
        """Refuses a study that can't be run.

        Raises:
            InputError: naming the first fault.
        """
        require_in_range(self)
        require_name("name", self.name)
        if not self.seeds:
            raise InputError("the study has no seeds; write a list, such as seeds: [0, 1, 2, 3, 4]")
        for repeated in _repeated(self.seeds):
            raise InputError(f"seeds repeat {repeated}; each run is made once, so write each seed once")
        if not self.arms:
            raise InputError("the study has no arms; write arms: {name: {configs: [...], flags: [...]}}")
        for arm in self.arms:
            if arm in OWN_FOLDERS:
                raise InputError(f"arm '{arm}': it names a folder beside {', '.join(OWN_FOLDERS)}; choose another name")
            require_name("arm", arm)
        self._check_references()
        self._check_budget()
        for repeated in _repeated([stage.makes for stage in self.shared]):
            raise InputError(f"two shared stages make '{repeated}'; give each a path of its own")
        for stage in self.shared:
            if not stage.makes or Path(stage.makes).is_absolute() or ".." in Path(stage.makes).parts:
                raise InputError(f"shared stage '{stage.name}' makes '{stage.makes}'; write a path below {{shared}}")
            stage.check()
        self._check_share()

    def _check_references(self) -> None:
        ends = [] if self.gate is None else [("gate.oracle", self.gate.oracle), ("gate.null", self.gate.null)]
        named = [
            *(("primary", arm) for arm in self.primary),
            *(("contrasts", arm) for pair in self.contrasts for arm in pair),
        ]
        for key, arm in [("baseline", self.baseline), *named, *ends]:
            if arm not in self.arms:
                known = f"{', '.join(self.arms)}{did_you_mean(arm, self.arms)}"
                raise InputError(f"{key} names the arm '{arm}', which is not there; the arms are {known}")
        if self.baseline in self.primary:
            raise InputError(
                f"primary names the baseline '{self.baseline}'; it lists the arms that are compared with it"
            )
        self._check_contrasts()
        if self.gate is not None:
            self._check_gate(self.gate)

    def _check_contrasts(self) -> None:
        """Refuses two primary families, an arm against itself, and a pair that stands twice."""
        if self.contrasts and self.primary:
            raise InputError(
                f"primary names {', '.join(self.primary)} and contrasts name {len(self.contrasts)} pairs; a study has one "
                f"primary family, so write [arm, {self.baseline}] in contrasts, or take contrasts out"
            )
        for first, second in self.contrasts:
            if first == second:
                raise InputError(f"contrasts hold '{first}' against itself; name two arms")
        for first, second in _repeated([sorted(pair) for pair in self.contrasts]):
            raise InputError(f"contrasts compare '{first}' and '{second}' twice; write each pair once")

    def _check_gate(self, gate: Gate) -> None:
        """Refuses a gate of one arm, of one seed, or of seeds that the study compares by."""
        if gate.oracle == gate.null:
            raise InputError(f"gate.oracle and gate.null are both '{gate.oracle}'; name two arms")
        if common := sorted({*gate.seeds} & {*self.seeds}):
            raise InputError(
                f"gate.seeds and seeds have {common[0]} in common; a world is tuned by its gate, so write other seeds there"
            )
        if len({*gate.seeds}) < max(2, len(gate.seeds)):
            raise InputError(f"gate.seeds are {gate.seeds}; write two different seeds or more")

    def _check_share(self) -> None:
        """Refuses unknown names in `share`, and stages whose product would contradict it."""
        names = [*(stage.name for stage in self.shared), *RANDOM_PARTS]
        if unknown := [name for name in self.share if name not in names]:
            raise InputError(f"share names '{unknown[0]}', which nothing here is; write any of {', '.join(names)}")
        own = [stage for stage in self.shared if stage.name not in self.share]
        for stage in self.shared:
            commands = " ".join(stage.run)
            read = [each.name for each in own if each != stage and each.read_by(commands)]
            if stage in own and "{seed}" not in commands and not read:
                raise InputError(
                    f"shared stage '{stage.name}' is made for each seed, but would be the same each time: write {{seed}} "
                    f"where its commands take seeds, or share: [{stage.name}] if all seeds are to have one"
                )
            if stage not in own and read:
                raise InputError(
                    f"share names the stage '{stage.name}', but it is made from that of '{read[0]}', which every seed has "
                    f"for itself; share '{read[0]}' too, or neither"
                )

    def _check_budget(self) -> None:
        given = {name: value for name, value in asdict(self.budget).items() if value is not None}
        if len(given) != 1 or min(given.values()) < 1:
            said = ", ".join(f"{name}: {value}" for name, value in given.items()) or "nothing"
            raise InputError(f"the budget says {said}; write one of steps: N and generated_tokens: N, with N above 0")


def _complete(arms: dict[str, Arm]) -> dict[str, Arm]:
    """Arms with the configs and flags of the arm that they are like before their own.

    Raises:
        InputError: if an arm is like one that does not stand above it.
    """
    complete: dict[str, Arm] = {}
    for name, arm in arms.items():
        if arm.like is not None:
            if arm.like not in complete:
                known = f"{', '.join(complete) or 'none'}{did_you_mean(arm.like, complete)}"
                raise InputError(f"arm '{name}' is like '{arm.like}', which is no arm above it; those are {known}")
            first = complete[arm.like]
            arm = replace(arm, configs=[*first.configs, *arm.configs], flags=[*first.flags, *arm.flags], like=None)
        complete[name] = replace(arm, flags=_words(arm.flags))
    return complete


def _words(flags: list[str]) -> list[str]:
    """Flags as words of a command line: `--data.curriculum null`, as one text, becomes `--data.curriculum=null`."""
    found: list[str] = []
    for flag in flags:
        name, _, value = flag.partition(" ")
        spaced = name.startswith("-") and "=" not in name and bool(value.strip())
        joined = [f"{name}={value.strip()}"] if name.startswith("--") else [name, value.strip()]
        found += joined if spaced else [flag]
    return found


def _repeated(values: list[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value in values[:i]]


def _first(error: ValidationError) -> str:
    """Describes the first validation error: place and value."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "as a whole"
    said = {"unexpected_keyword_argument": "is no setting here", "missing": "is missing"}.get(first["type"])
    # A number out of range: the message of `require_in_range`.
    if first["type"] == "value_error":
        said = str(first.get("ctx", {}).get("error"))
    elif said is None:
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, seen {first['input']!r:.80}"
    return f"has a mistake at {place}: {said}"
