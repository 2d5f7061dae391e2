"""Opens what stands for prompts (a path, a name on the hub, a source, a mixture), and mixes several sources into one pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lightning.errors import InputError, did_you_mean, require_name
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.frame import FramePrompts, is_frame, is_splits
from saerl_lightning.prompts.hub import HubPrompts
from saerl_lightning.prompts.places import is_saved, on_hub
from saerl_lightning.prompts.source import PromptSource, Reading
from saerl_lightning.ranges import Count, CountFrom0, NotNegative, Seed, require_in_range
from saerl_lightning.records import Prompt


@dataclass(frozen=True)
class Part:
    """A source in a mixture, with its share. Without `weight` and `count`, all its prompts are taken once.

    Args:
        source: Path, name on the hub, or prompt source.
        weight: Share of the prompts, relative to the weights of other parts; null for none.
        count: Number of prompts to draw; null for none.
        columns: Column of each prompt field, if `source` is a path; null takes those of the mixture.
    """

    source: str | PromptSource
    weight: NotNegative | None = None
    count: CountFrom0 | None = None
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuses numbers out of range, and two shares at once."""
        require_in_range(self)
        if self.weight is not None and self.count is not None:
            raise InputError(f"Part.weight is {self.weight:g}, with a count of {self.count}; write one of the two")


class Mixture(PromptSource):
    """Prompts drawn from several sources.

    Prompts of a part are drawn without replacement. A part that is asked for more prompts than it has gives all of them,
    and is drawn from again. The name of a part is the `source` of its prompts, and their uids begin with it.

    Args:
        parts: Sources by name, each with a weight, a count, or neither (all of its prompts).
        size: Number of prompts, counts included; null takes as many as the weights allow without a repeat.
        seed: Seed of the random draw.
        columns: Column of each prompt field, for parts that are paths without columns of their own.
    """

    def __init__(
        self,
        parts: dict[str, str | Part | PromptSource],
        size: Count | None = None,
        seed: Seed = 0,
        columns: dict[str, str] | None = None,
    ) -> None:
        self.parts = parts
        self.size = size
        self.seed = seed
        self.columns = columns
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the sources and draws from them: first all of the first part, in its order, then the next.

        Raises:
            InputError: if a source can't be read, the weights sum to 0, or the size does not fit the counts.
        """
        return self.read().prompts

    def read(self) -> Reading:
        """Reads the prompts, and says how each source was read and how many prompts it gave."""
        parts = {name: part if isinstance(part, Part) else Part(part) for name, part in self.parts.items()}
        _check(parts, self.size)
        read = {name: open_prompts(part.source, self._columns(part)).read() for name, part in parts.items()}
        held = {name: len(each.prompts) for name, each in read.items()}
        counts = shares(parts, held, self.size)
        generator = np.random.default_rng(self.seed)
        prompts = [
            prompt for name, each in read.items() for prompt in _drawn(name, each.prompts, counts[name], generator)
        ]
        if not prompts:
            raise InputError("the mixture has no prompt: every part has count 0 or weight 0; raise one of them")
        said = [f"{name}: {line}" for name, each in read.items() for line in each.said]
        return Reading(prompts, (*said, _said(counts, held)))

    def _columns(self, part: Part) -> dict[str, str] | None:
        return self.columns if part.columns is None else part.columns


def _check(parts: Mapping[str, Part], size: int | None) -> None:
    if not parts:
        raise InputError("a mixture without a part; write {name: path} or {name: {source: path, weight: 1}}")
    for name in parts:
        require_name("the part of a mixture", name)
    weights = [part.weight for part in parts.values() if part.weight is not None]
    if weights and sum(weights) == 0:
        raise InputError(
            f"the weights of the mixture's parts {', '.join(n for n, p in parts.items() if p.weight is not None)} sum to 0; "
            "write a weight above 0 for one of them"
        )
    if size is not None and not weights:
        raise InputError(
            f"the mixture has size {size} and no part with a weight to fill it; write weights, or size null"
        )


def shares(parts: Mapping[str, Part], held: Mapping[str, int], size: int | None) -> dict[str, int]:
    """Returns the number of prompts that each part gives.

    Args:
        parts: Parts of a mixture.
        held: Number of prompts that each part has.
        size: Number of prompts of the mixture; None takes as many as the weights allow without a repeat.

    Raises:
        InputError: if the parts without a weight exceed the size.
    """
    fixed = {n: held[n] if p.count is None else p.count for n, p in parts.items() if p.weight is None}
    weights = {n: p.weight for n, p in parts.items() if p.weight}
    total = sum(weights.values())
    if not weights:
        return {n: fixed.get(n, 0) for n in parts}
    if size is None:
        room = min(held[n] * total / weight for n, weight in weights.items())
        exact = {n: room * weight / total for n, weight in weights.items()}
        drawn = {n: min(int(share + 1e-9), held[n]) for n, share in exact.items()}
    else:
        if (rest := size - sum(fixed.values())) < 0:
            raise InputError(
                f"the mixture's size is {size:,}, and its parts without a weight have {sum(fixed.values()):,} prompts; "
                "raise the size or write counts"
            )
        exact = {n: rest * weight / total for n, weight in weights.items()}
        drawn = {n: int(share) for n, share in exact.items()}
        by_remainder = sorted(exact, key=lambda n: drawn[n] - exact[n])  # largest remainder first
        for n in by_remainder[: rest - sum(drawn.values())]:
            drawn[n] += 1
    return {n: fixed.get(n, drawn.get(n, 0)) for n in parts}


def _drawn(name: str, prompts: list[Prompt], count: int, generator: np.random.Generator) -> list[Prompt]:
    """Draws prompts without replacement, in their own order; if there are too few, all are taken, and then drawn again."""
    drawn: list[Prompt] = []
    for turn in range(-(-count // len(prompts))):
        left = min(count - len(drawn), len(prompts))
        rows = range(left) if left == len(prompts) else sorted(generator.permutation(len(prompts))[:left].tolist())
        drawn += [_named(prompts[row], name, turn) for row in rows]
    return drawn


def _named(prompt: Prompt, name: str, turn: int) -> Prompt:
    uid = f"{name}/{prompt.uid}"
    if not turn:
        return replace(prompt, uid=uid, source=name)
    return replace(prompt, uid=f"{uid} (again {turn})", source=name, copied_from=uid)


def _said(counts: Mapping[str, int], held: Mapping[str, int]) -> str:
    parts = [
        f"{name} {count:,} of {held[name]:,}"
        + (f" ({count - held[name]:,} of them repeats)" if count > held[name] else "")
        for name, count in counts.items()
    ]
    return f"mixture of {sum(counts.values()):,} prompts: {', '.join(parts)}"


Given = str | Path | PromptSource | Any | Mapping[str, str | Part | PromptSource]


def open_prompts(given: Given, columns: Mapping[str, str] | None = None) -> PromptSource:
    """Returns the source that a path, a hub name, rows in memory, or a mapping of such (a mixture) stands for. Reads nothing.

    Args:
        given: Path of a file or folder, `owner/name` on the hub, a source, rows in memory, or sources by name.
        columns: Column of each prompt field, for what is no source with columns of its own.
    """
    mapped = dict(columns) if columns else None
    if isinstance(given, PromptSource):
        return given
    if isinstance(given, Mapping):
        if "class_path" in given:  # the parser takes a misspelt class without arguments for a mixture
            name, known = given["class_path"], [kind.__name__ for kind in PromptSource.__subclasses__()]
            raise InputError(f"{name!r} fits no class of prompts{did_you_mean(str(name), known)}")
        if is_splits(given):
            raise InputError(
                f"prompts are given as a DatasetDict; give one split of it: {', '.join(given) or 'it has none'}"
            )
        return Mixture(dict(given), columns=mapped)
    if is_frame(given):
        return FramePrompts(given, columns=mapped)
    if not isinstance(given, str | Path):
        raise InputError(
            f"prompts are given as {type(given).__name__}; give a path, a name on the hub, a source as ListPrompts, a "
            "DataFrame, a Dataset, an Arrow table, or a list of mappings from column to value"
        )
    if (given := str(given)).startswith("~/"):  # no shell has put the home in its place in YAML
        given = str(Path(given).expanduser())
    path = Path(given)
    if path.is_dir() and not is_saved(path):
        return HubPrompts(given, columns=mapped)
    return HubPrompts(given, columns=mapped) if on_hub(given) and not path.exists() else FilePrompts(given, mapped)
