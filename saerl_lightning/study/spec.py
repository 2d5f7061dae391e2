"""What a study is: arms that differ in a few configs and flags, run over the same seeds on one budget.

It is read from YAML and checked for what can be known without parsing a run's configuration: names that refer to nothing,
an empty budget, no seeds. Whether the arms' flags parse is the tool's to check (`saerl_lightning.study.folder`).
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from saerl_lightning.errors import InputError, did_you_mean, require_name
from saerl_lightning.files import read_yaml
from saerl_lightning.ranges import Count, LongCount, Seed, require_in_range

STRICT = ConfigDict(extra="forbid")
OWN_PROGRAMS = ("main.py", "python")
OWN_FOLDERS = ("shared", "report", "causal", "drift")  # of a study; an arm has its name for a folder

LUCK = {  # what a run draws besides its stages' products; the names are those of its settings
    "order": "the order that the operations start from",
    "signals": "random and shuffled signals, and whatever else a signal draws",
    "reference": "the corrupted copies",
    "filtering": "which labels the filter's probe sees, its folds, random drops",
    "clustering": "where k-means starts, random clusters",
    "curriculum": "which labels the curriculum's probe sees, its folds, shuffled orders",
    "mixing": "what full mixing deals",
    "extra": "what further operations draw",
    "rewards": "what random rewards draw",
}


@dataclass(frozen=True)
class Arm:
    """One way to train: what comes behind the study's base on the command line of `fit`.

    Args:
        configs: overlays, in order.
        flags: of `fit`; they win over the overlays.
        description: what the arm is for, in a sentence.
    """

    __pydantic_config__ = STRICT

    configs: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    description: str = ""


@dataclass(frozen=True)
class Budget:
    """Where every run ends: after optimiser steps, or after the step that reaches a number of generated tokens."""

    __pydantic_config__ = STRICT

    steps: Count | None = None
    generated_tokens: LongCount | None = None

    def __post_init__(self) -> None:
        require_in_range(self)

    @property
    def unit(self) -> Literal["steps", "tokens"]:
        """What runs are equal in, and curves are compared along."""
        return "tokens" if self.steps is None else "steps"


@dataclass(frozen=True)
class Stage:
    """Something that all arms of a seed share; it is made once a seed, before the first run.

    In `run`, `{made}` is where the product goes, `{scratch}` a folder that is deleted afterwards, `{seed}` the seed (the
    study's first one for a stage that all seeds share), and `{shared}/<makes>` another stage's product for that seed. A line
    begins with `main.py`, `python`, or any other program.

    Args:
        name: for people, and for the study's `share`.
        makes: file or folder; written `{shared}/<makes>` where it is read. The stage is skipped where it exists.
        run: command lines, one after the other.
        used_with: text that the configs and flags of an arm must hold as well for the stage's seconds to count as the arm's;
            where the product's place is in the flags of arms that read nothing from there. See `sharing.stages_used`.
    """

    __pydantic_config__ = STRICT

    name: str
    makes: str
    run: list[str]
    used_with: str = ""

    @property
    def pattern(self) -> str:
        """What finds the product in a text, and not merely a longer name that begins like it."""
        return re.escape(f"{{shared}}/{self.makes}") + r"(?![\w.-])"

    def read_by(self, text: str) -> bool:
        """Whether a text names the product."""
        return re.search(self.pattern, text) is not None

    def check(self) -> None:
        """Refuses command lines that no shell would take, before the first one runs.

        Raises:
            InputError: naming the stage and the line.
        """
        if not self.run:
            raise InputError(f"shared stage '{self.name}' runs nothing; write run: [main.py ...]")
        for line in self.run:
            try:
                words = shlex.split(line)
            except ValueError as error:
                raise InputError(f"shared stage '{self.name}' runs {line!r}: {error}; close the quote") from error
            if not words:
                raise InputError(f"shared stage '{self.name}' has an empty line in run; take it out")
            if words[0] not in OWN_PROGRAMS and "{" not in words[0] and shutil.which(words[0]) is None:
                raise InputError(
                    f"shared stage '{self.name}' runs '{words[0]}', which is no program on this machine; begin the line with "
                    f"main.py, python, or a program that is on the PATH{did_you_mean(words[0], OWN_PROGRAMS)}"
                )


@dataclass(frozen=True)
class StudySpec:
    """A study.

    Args:
        name: of the study; W&B groups runs by it.
        base: configs that all arms stand on.
        arms: by name; a name is a folder's name too.
        seeds: of the runs of each arm. A seed draws everything anew that has luck: the stages' products, the order, signals,
            copies, labels, folds, clusters, mixing, rewards, initial weights where there are some, and the sampling.
        budget: of every run.
        baseline: the arm that the others are compared with.
        metric: what the primary comparison is about, as it is logged.
        primary: arms whose end and steps to the target are compared with the baseline's in one family, corrected by Holm's
            method; the others are exploratory. An empty list takes all arms.
        shared: stages: what the arms of a seed share.
        share: what all seeds have in common: names of stages, and of `LUCK`.
        flags: that all arms get, before their own.
        description: what the study asks.
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
    shared: list[Stage] = field(default_factory=list)
    share: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    description: str = ""

    @classmethod
    def read(cls, path: str | Path) -> StudySpec:
        """Reads and checks a study's file.

        Raises:
            InputError: if it can't be read, or says what can't be.
        """
        given = read_yaml(path, "the study")
        try:
            spec = TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise InputError(f"the study '{path}' {_first(error)}") from error
        spec.check()
        return spec

    def check(self) -> None:
        """Refuses a study that can't be run.

        Raises:
            InputError: for the first thing that is wrong.
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
        for key, arm in [("baseline", self.baseline), *(("primary", arm) for arm in self.primary)]:
            if arm not in self.arms:
                known = f"{', '.join(self.arms)}{did_you_mean(arm, self.arms)}"
                raise InputError(f"{key} names the arm '{arm}', which is not there; the arms are {known}")
        if self.baseline in self.primary:
            raise InputError(
                f"primary names the baseline '{self.baseline}'; it lists the arms that are compared with it"
            )

    def _check_share(self) -> None:
        """Refuses names of nothing, and stages that would be the same for all seeds, or can't be."""
        names = [*(stage.name for stage in self.shared), *LUCK]
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


def _repeated(values: list[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value in values[:i]]


def _first(error: ValidationError) -> str:
    """The first complaint in words: where it is, what was seen."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "as a whole"
    said = {"unexpected_keyword_argument": "is no setting here", "missing": "is missing"}.get(first["type"])
    if first["type"] == "value_error":  # a number out of its range
        said = str(first.get("ctx", {}).get("error"))
    elif said is None:
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, seen {first['input']!r:.80}"
    return f"has a mistake at {place}: {said}"
