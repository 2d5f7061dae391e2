"""Random seeds of a study's runs: which stage products and which `seed` arguments a seed changes. Pure functions.

Everything random is drawn again for each seed. Otherwise an interval over seeds that share one SAE, its labels or its
clusters would ignore how much results vary with these. Parts named in `share` are common to all seeds, and the report
says so.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from saerl_lightning.study.spec import Stage, StudySpec

Config = Mapping[str, Any]  # parsed configuration of an arm

# Arguments of `data` that are equal for all seeds: the training pool and the questions.
QUESTIONS = ("train", "val", "test", "val_sampling")
# Arguments that hold weights, or measured labels: results vary with their luck.
INPUTS = ("path", "labels")
# The argument of `model` that gets the run's seed itself.
SAMPLING = "sampling"
# Factor of a seed that an arm's own file gives: arms with different seeds for one operation stay different in every run.
SEED_FACTOR = 1000
# numpy and scikit-learn take seeds below this.
SEED_END = 2**32


def product_path(spec: StudySpec, stage: Stage, seed: int) -> str:
    """Path of a stage's product for a seed, relative to the study's `shared` folder."""
    return stage.makes if stage.name in spec.share else f"seed-{seed}/{stage.makes}"


def with_paths_of(text: str, spec: StudySpec, shared: str, seed: int) -> str:
    """Replaces `{shared}` in a text: `{shared}/sae` becomes `<shared>/seed-1/sae`, or `<shared>/sae` if shared by all.

    Args:
        text: Part of a command line of an arm or a stage.
        spec: Study whose stages are known.
        shared: Path of the study's `shared` folder.
        seed: Seed of the run.
    """
    for stage in sorted(spec.shared, key=lambda stage: -len(stage.makes)):
        place = f"{shared}/{product_path(spec, stage, seed)}"
        text = re.sub(stage.pattern, lambda _, place=place: place, text)
    return text.replace("{shared}", shared)


def stage_products(spec: StudySpec) -> list[tuple[Stage, int | None]]:
    """Lists the products that the study needs: a stage and its seed, or None if shared by all seeds.

    Each stands behind those that it is made from, and otherwise in the study's order.
    """
    return [
        (stage, seed)
        for stage in behind_what_they_read(spec.shared)
        for seed in (spec.seeds if stage.name not in spec.share else [None])
    ]


def behind_what_they_read(stages: Sequence[Stage]) -> list[Stage]:
    """Orders stages so that each stands behind those whose products its commands read, and otherwise as given."""
    ordered: list[Stage] = []
    waiting = list(stages)
    while waiting:
        ready = [
            stage
            for stage in waiting
            if not any(other.read_by(" ".join(stage.run)) for other in waiting if other is not stage)
        ]
        # Stages that read each other have no order; the first then says itself what it lacks.
        ordered.append((ready or waiting)[0])
        waiting.remove(ordered[-1])
    return ordered


def product_name(stage: Stage, seed: int | None) -> str:
    """Name under which the seconds of a product are stored."""
    return stage.name if seed is None else f"{stage.name}, seed {seed}"


def fixed_inputs(
    arms: Mapping[str, Config], stages: Sequence[Stage] = (), read: Callable[[str], Config] = lambda _: {}
) -> list[str]:
    """Lists the weights and labels that all seeds read from one place: setting and value, each once.

    Products of shared stages are none of them: each seed has its own, or `share` names the stage.

    Args:
        arms: Configuration of each arm, in which paths of stages' products begin with `{shared}`.
        stages: Stages of the study, whose own command lines may read further ones by a flag or a config.
        read: Function that returns the content of a config that a stage's line names behind `-c`.
    """
    found = [f"{name} {value}" for config in arms.values() for name, value in _fixed(config)]
    for line in (line for stage in stages for line in stage.run):
        found += [f"{name} {value}" for name, value in _of_line(shlex.split(line), read).items() if value[:1] != "{"]
    return list(dict.fromkeys(found))


def _fixed(config: Config) -> Iterator[tuple[str, str]]:
    """Yields setting and value of the weights and labels that a configuration names, but for stages' products."""
    for part in ("model", "data"):
        for name, value in _inputs(config.get(part) or {}):
            if not (part == "data" and name.partition(".")[0] in QUESTIONS) and not value.startswith("{shared}"):
                yield f"{part}.{name}", value


def _of_line(words: Sequence[str], read: Callable[[str], Config]) -> dict[str, str]:
    """Weights and labels that a command line names, by setting; of several values the last one holds."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        value = value if equals else following
        part, _, inner = name.removeprefix("--").replace(".init_args", "").partition(".")
        if name in ("-c", "--config"):
            found |= dict(_fixed(read(value)))
            continue
        # What is given here as a whole holds nothing any more of what a config had below it.
        found = {
            key: old for key, old in found.items() if not (name[:2] == "--" and key.startswith(f"{part}.{inner}."))
        }
        if (
            name.startswith("--")
            and part in ("model", "data")
            and inner.rpartition(".")[2] in INPUTS
            and not (part == "data" and inner.partition(".")[0] in QUESTIONS)
            and value
            and not value.startswith("--")
        ):
            found[f"{part}.{inner}"] = value
    return found


def _inputs(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields every text at one of `INPUTS`, at any depth, with its dotted name."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        inner = name if key == "init_args" else f"{name}.{key}" if name else str(key)
        if key in INPUTS and isinstance(part, str):
            yield inner, part
        else:
            yield from _inputs(part, inner)


def common_parts(spec: StudySpec, inputs: Sequence[str]) -> list[str]:
    """Names all that the seeds of a study have in common.

    Args:
        spec: Study, whose `share` names parts of it.
        inputs: Weights and labels that all seeds read from one place, as `fixed_inputs` lists them.
    """
    own = [stage for stage in spec.shared if stage.name not in spec.share]
    drawn = any(flag.startswith("--data.train") and stage.read_by(flag) for flag in spec.flags for stage in own)
    return ["the questions" if drawn else "the pool and the questions", *spec.share, *inputs]


def seed_flags(config: Config, spec: StudySpec, seed: int) -> list[str]:
    """Builds the flags that give a run's seed to every `seed` argument of an arm, at any depth.

    The pool and the questions do not depend on the seed. A seed that the arm's own file gives is combined with the
    run's seed.

    Args:
        config: Configuration of the arm, with paths written as in the study's file.
        spec: Study, whose `share` names the parts that keep the arm's seed.
        seed: Seed of the run.
    """
    order = [] if "order" in spec.share else [f"--data.shuffle_seed={seed}"]
    flags = [f"--seed_everything={seed}", *order, f"--model.sampling.seed={seed}"]
    for part, fixed in (("data", QUESTIONS), ("model", (SAMPLING,))):
        for name, value in (config.get(part) or {}).get("init_args", {}).items():
            if name not in (*fixed, *spec.share):
                flags += _flags(f"--{part}.{name}", value, seed)
    return flags


def with_seed(config: Config, spec: StudySpec, seed: int) -> Config:
    """Returns an arm's configuration with a run's seed, equal to parsing it with `seed_flags`."""
    data, model = dict(config["data"]["init_args"]), dict(config["model"]["init_args"])
    for given, fixed in ((data, QUESTIONS), (model, (SAMPLING,))):
        given |= {name: reseeded(value, seed) for name, value in given.items() if name not in (*fixed, *spec.share)}
    if "order" not in spec.share:
        data["shuffle_seed"] = seed
    model[SAMPLING] = {**model[SAMPLING], "seed": seed}
    parts = {"data": data, "model": model}
    return {**config, **{name: {**config[name], "init_args": part} for name, part in parts.items()}}


def _flags(name: str, value: Any, seed: int) -> list[str]:
    # A flag can't change an element of a list, so the whole list is given.
    if isinstance(value, list):
        again = reseeded(value, seed)
        return [f"{name}={json.dumps(again)}"] if again != value else []
    if not isinstance(value, dict):
        return []
    flags = []
    for key, part in value.items():
        inner = name if key == "init_args" else f"{name}.{key}"
        flags += [f"{inner}={_run_seed(part, seed)}"] if _is_seed(key, part) else _flags(inner, part, seed)
    return flags


def reseeded(value: Any, seed: int) -> Any:
    """Returns a configuration with every seed replaced by the run's."""
    if isinstance(value, list):
        return [reseeded(each, seed) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _run_seed(part, seed) if _is_seed(key, part) else reseeded(part, seed) for key, part in value.items()}


def _is_seed(key: str, value: Any) -> bool:
    return key == "seed" and isinstance(value, int) and not isinstance(value, bool)


def _run_seed(own: int, seed: int) -> int:
    """Seed of an argument in a run, computed from the arm's own seed (0 by default) and the run's."""
    return (SEED_FACTOR * own + seed) % SEED_END
