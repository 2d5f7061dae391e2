"""What a seed of a study redraws: the stages' products that are its own, and the `seed` arguments that its runs get. Pure.

Everything that has luck is drawn anew for each seed: an interval over seeds that share an SAE, its labels or its clusters
would take that one draw for the method. What `share` names is common to all seeds, and the report says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from saerl_lightning.study.spec import Stage, StudySpec

Config = Mapping[str, Any]  # an arm's, as its command line parses

QUESTIONS = ("train", "val", "test", "val_sampling")  # of `data`: the pool and what is asked, the same for all seeds
SAMPLING = "sampling"  # of `model`: a run's own
ANOTHER = 1000  # how far apart the draws are of arms whose files give two seeds to one operation
LARGEST = 2**32  # what numpy and scikit-learn take


def product(spec: StudySpec, stage: Stage, seed: int) -> str:
    """Where a stage's product for a seed is, below the study's `shared` folder."""
    return stage.makes if stage.name in spec.share else f"seed-{seed}/{stage.makes}"


def placed(text: str, spec: StudySpec, shared: str, seed: int) -> str:
    """A part of a command line with the places of a seed: `{shared}/sae` becomes `<shared>/seed-1/sae`, or `<shared>/sae`.

    Args:
        text: of an arm or a stage.
        spec: the study.
        shared: the study's `shared` folder.
        seed: of the run.
    """
    for stage in sorted(spec.shared, key=lambda stage: -len(stage.makes)):
        place = f"{shared}/{product(spec, stage, seed)}"
        text = re.sub(stage.pattern, lambda _, place=place: place, text)
    return text.replace("{shared}", shared)


def makings(spec: StudySpec) -> list[tuple[Stage, int | None]]:
    """Every product that the study needs, in the order they are made: a stage, and its seed; None is for all seeds."""
    return [(stage, seed) for stage in spec.shared for seed in (spec.seeds if stage.name not in spec.share else [None])]


def label(stage: Stage, seed: int | None) -> str:
    """The name that a product's seconds are kept under."""
    return stage.name if seed is None else f"{stage.name}, seed {seed}"


def seed_flags(config: Config, spec: StudySpec, seed: int) -> list[str]:
    """The flags that bring a seed to everything that an arm draws: each `seed` argument, in whatever is nested where.

    The pool and the questions are not drawn again. A seed that the arm gives itself is another draw, in every run.

    Args:
        config: of the arm, in which places are written as in the study's file.
        spec: the study; what its `share` names keeps the arm's seed.
        seed: of the run.
    """
    order = [] if "order" in spec.share else [f"--data.shuffle_seed={seed}"]
    flags = [f"--seed_everything={seed}", *order, f"--model.sampling.seed={seed}"]
    for part, fixed in (("data", QUESTIONS), ("model", (SAMPLING,))):
        for name, value in (config.get(part) or {}).get("init_args", {}).items():
            if name not in (*fixed, *spec.share):
                flags += _flags(f"--{part}.{name}", value, seed)
    return flags


def with_seed(config: Config, spec: StudySpec, seed: int) -> Config:
    """An arm's configuration as a run of the seed has it: what `seed_flags` say, without a command line."""
    data, model = dict(config["data"]["init_args"]), dict(config["model"]["init_args"])
    for given, fixed in ((data, QUESTIONS), (model, (SAMPLING,))):
        given |= {name: reseeded(value, seed) for name, value in given.items() if name not in (*fixed, *spec.share)}
    if "order" not in spec.share:
        data["shuffle_seed"] = seed
    model[SAMPLING] = {**model[SAMPLING], "seed": seed}
    parts = {"data": data, "model": model}
    return {**config, **{name: {**config[name], "init_args": part} for name, part in parts.items()}}


def _flags(name: str, value: Any, seed: int) -> list[str]:
    if isinstance(value, list):  # flags can't reach into a list: it is given whole
        again = reseeded(value, seed)
        return [f"{name}={json.dumps(again)}"] if again != value else []
    if not isinstance(value, dict):
        return []
    flags = []
    for key, part in value.items():
        inner = name if key == "init_args" else f"{name}.{key}"
        flags += [f"{inner}={_drawn(part, seed)}"] if _is_seed(key, part) else _flags(inner, part, seed)
    return flags


def reseeded(value: Any, seed: int) -> Any:
    """A configuration with a run's seed in place of every seed."""
    if isinstance(value, list):
        return [reseeded(each, seed) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _drawn(part, seed) if _is_seed(key, part) else reseeded(part, seed) for key, part in value.items()}


def _is_seed(key: str, value: Any) -> bool:
    return key == "seed" and isinstance(value, int) and not isinstance(value, bool)


def _drawn(own: int, seed: int) -> int:
    """The seed of a run, for an argument to which the arm gives `own`: 0 unless it says otherwise."""
    return (ANOTHER * own + seed) % LARGEST
