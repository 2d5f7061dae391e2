"""A study's folder: parses the arms, records the study, and refuses other studies, other settings and second calls."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from saerl_lightning import cli, lock, shipped
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, read_mapping, read_yaml, write_whole
from saerl_lightning.parser import Refused
from saerl_lightning.study.include import self_contained
from saerl_lightning.study.plan import OWN_FLAGS, arm_arguments, budget_flags
from saerl_lightning.study.results import RECORD, SPEC, run_folder
from saerl_lightning.study.run_record import now
from saerl_lightning.study.seeding import fixed_inputs, with_seed
from saerl_lightning.study.software import software
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.training.loggers import GRPO, SFT, LoggedNames

Resolved = dict[str, Any]

# Settings that must be equal in all arms. Otherwise their accuracies would not be comparable.
EVALUATION = (
    "data.init_args.val",
    "data.init_args.test",
    "data.init_args.val_sampling",
    "data.init_args.val_batch_size",  # random numbers of the samples depend on the batch
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)
STEPS = {"GRPOModule": GRPO, "SFTModule": SFT}
# Stands for `{shared}` while flags are parsed, because braces would be read as YAML.
SHARED = "SHARED_BY_THE_ARMS"
# Settings of a single run, which are not part of an arm's configuration.
PLACES = {"config", "run_dir", "overwrite", "ckpt_path", "weights_only", "seed_everything"}


class _Made(Exception):
    """Raised to take the parser out of LightningCLI's constructor."""


class _ParserOnly(cli.RunCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _Made(parser)


def resolve(spec: StudySpec, root: Path) -> dict[str, Resolved]:
    """Parses every arm's configuration and checks that the arms are comparable.

    Args:
        spec: Study whose arms are parsed.
        root: Folder of the study; in the result, paths below it are written `{study}`, and those of shared stages
            `{shared}`.

    Returns:
        Full configuration of each arm, without the paths of its runs; seeds are as in the arm's own files.

    Raises:
        InputError: if flags do not parse, two arms are equal, or an arm changes the evaluation.
    """
    parser = _parser()
    resolved = {arm: _parsed(parser, spec, arm, root) for arm in spec.arms}
    for (one, config), (other, second) in itertools.combinations(resolved.items(), 2):
        if config == second:
            raise InputError(f"the arms '{one}' and '{other}' resolve to the same configuration; leave one of them out")
    for arm, config in resolved.items():
        _refuse_no_csv(arm, config)
        _refuse_other_evaluation(arm, config, spec.baseline, resolved[spec.baseline])
        _refuse_many_updates(spec, arm, config)
        _refuse_unlogged_metric(spec, arm, config)
    _refuse_uneven_validation(spec, resolved[spec.baseline])
    return resolved


def common_inputs(spec: StudySpec, resolved: Mapping[str, Resolved]) -> list[str]:
    """Lists the weights and labels that all seeds read from one place, also by configs that stages name."""
    return fixed_inputs(resolved, spec.shared, _content)


def _content(config: str) -> Resolved:
    """Returns what a config holds; nothing if it can't be read, which its stage will tell."""
    try:
        found = read_yaml(shipped.find(config), "a stage's config")
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def digests(spec: StudySpec, resolved: Mapping[str, Resolved]) -> dict[str, str]:
    """Computes a digest of each arm from its configuration, the budget and the shared parts."""
    frame = [spec.budget.steps, spec.budget.generated_tokens, sorted(spec.share)]
    texts = {arm: json.dumps([frame, config], sort_keys=True) for arm, config in resolved.items()}
    return {arm: hashlib.sha256(text.encode()).hexdigest()[:16] for arm, text in texts.items()}


def study_digest(arms: Mapping[str, str]) -> str:
    """Computes one digest from those of all arms."""
    return hashlib.sha256(json.dumps(arms, sort_keys=True).encode()).hexdigest()[:16]


def _parser() -> LightningArgumentParser:
    try:
        cli.run(["fit"], cli_class=_ParserOnly)
    except _Made as made:
        return made.args[0]
    raise AssertionError("LightningCLI parses in its constructor")


def _parsed(parser: LightningArgumentParser, spec: StudySpec, arm: str, root: Path) -> Resolved:
    _refuse_own_flags(spec, arm)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = [word.replace("{shared}", SHARED) for word in arm_arguments(spec, arm)]
            parsed = parser.parse_args([*arguments, *budget_flags(spec.budget)])
    except SystemExit as end:
        mistake = str(end).rpartition(" (")[0] if isinstance(end, Refused) else said.getvalue().strip()
        raise InputError(f"the arm '{arm}' does not parse: {mistake}") from None
    return placeless(json.loads(json.dumps(parsed["fit"].as_dict(), default=_plain)), root)


def placeless(config: Resolved, root: Path, seed: int | None = None) -> Resolved:
    """Removes a run's own paths from a configuration: the study's folder becomes `{study}`, a stage's `{shared}`.

    Args:
        config: Configuration of an arm or of a run.
        root: Folder of the study.
        seed: Seed of the run, whose own stage products are written like shared ones; null for an arm.
    """
    text = json.dumps({name: value for name, value in config.items() if name not in PLACES}, sort_keys=True)
    shared = f"{root}/shared"
    for place in (SHARED, *([] if seed is None else [f"{shared}/seed-{seed}"]), shared):
        text = text.replace(f"{place}/", "{shared}/")
    kept = json.loads(text.replace(str(root), "{study}"))
    kept["trainer"].pop("default_root_dir", None)
    kept["checkpoint"].pop("dirpath", None)
    return kept


def listed(config: Resolved, key: str) -> list[dict[str, Any]]:
    """Lists the classes at a key that holds one, several or none: each with `class_path` and `init_args`."""
    given = _at(config, key)
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, dict)]


def sets(config: Resolved) -> dict[str, int]:
    """Number of samples a question for each validation set; a set's own sampling wins over `val_sampling`."""
    data = config["data"]["init_args"]
    general, given = data["val_sampling"]["group_size"], data.get("val") or {}
    own = {name: (each.get("sampling") if isinstance(each, dict) else None) or {} for name, each in given.items()}
    return {name: sampling.get("group_size", general) for name, sampling in own.items()}


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else str(value)


def _refuse_own_flags(spec: StudySpec, arm: str) -> None:
    for flag in [*spec.flags, *spec.arms[arm].flags]:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name in OWN_FLAGS:
            raise InputError(
                f"the arm '{arm}' gives --{name}, which the study sets from its seeds, budget and folder; leave it out"
            )


def _refuse_no_csv(arm: str, config: Resolved) -> None:
    """Refuses an arm without the CSV logger, because a study reads its runs' metrics from CSV files."""
    loggers = listed(config, "trainer.logger")
    names = [each["class_path"].rpartition(".")[2] for each in loggers]
    if not any(
        name == "CSVLogger" and each["init_args"]["name"] == "csv" for name, each in zip(names, loggers, strict=True)
    ):
        seen = ", ".join(names) or _at(config, "trainer.logger")
        raise InputError(
            f"the arm '{arm}' logs to {seen}, and a study reads csv/version_*/metrics.csv; keep the "
            "CSVLogger named csv in trainer.logger, and add others behind it (trainer: {logger+: ...})"
        )


def _refuse_other_evaluation(arm: str, config: Resolved, baseline: str, reference: Resolved) -> None:
    for key in EVALUATION:
        if _at(config, key) != _at(reference, key):
            raise InputError(
                f"the arm '{arm}' changes the evaluation: {key} is {_at(config, key)}, and {_at(reference, key)} in "
                f"'{baseline}'; evaluate all arms alike, in the study's base"
            )
    if _grader(config) != _grader(reference):
        raise InputError(
            f"the arm '{arm}' changes the evaluation: model.init_args.rewards.0 grades it, and is {_grader(config)}, and "
            f"{_grader(reference)} in '{baseline}'; keep the first reward, with a weight of 0 if it is not to train"
        )


def _refuse_many_updates(spec: StudySpec, arm: str, config: Resolved) -> None:
    updates = _at(config, "model.init_args.updates_per_batch")
    if spec.budget.steps is not None and updates not in (None, 1):
        raise InputError(
            f"the arm '{arm}' takes {updates} optimiser steps a batch: {spec.budget.steps} steps would see fewer prompts "
            "than in other arms; write a budget of generated_tokens, or updates_per_batch 1"
        )


def _refuse_unlogged_metric(spec: StudySpec, arm: str, config: Resolved) -> None:
    """Refuses a metric that no run logs; otherwise the comparison would be empty after all runs."""
    classes = [_at(config, f"{part}.class_path") for part in ("model", "data", "model.init_args.objective")]
    step = STEPS.get(str(classes[0]).rpartition(".")[2])
    if step is not None and all(name is None or name.startswith("saerl_lightning.") for name in classes):
        LoggedNames.of_policy(step, sets(config), None).require(f"the arm '{arm}': the study's metric", spec.metric)


def _refuse_uneven_validation(spec: StudySpec, config: Resolved) -> None:
    """Requires the last validation at the last step, and validations at equal steps in all arms."""
    if not _at(config, "data.init_args.val"):
        return
    every, epochs = _at(config, "trainer.val_check_interval"), _at(config, "trainer.check_val_every_n_epoch")
    if not isinstance(every, int) or epochs is not None:
        raise InputError(
            f"trainer.val_check_interval is {every} and trainer.check_val_every_n_epoch {epochs}: validations would come at "
            "different steps in arms of different epochs; write a number of steps, and null"
        )
    if spec.budget.steps is not None and spec.budget.steps % every:
        fits = spec.budget.steps - spec.budget.steps % every
        raise InputError(
            f"budget.steps {spec.budget.steps} is no multiple of trainer.val_check_interval {every}: the last validation "
            f"would come before the last step; write {fits or every} or {fits + every}"
        )


def _grader(config: Resolved) -> Any:
    rewards = _at(config, "model.init_args.rewards") or [None]
    first = rewards[0]
    if not isinstance(first, dict):
        return first
    arguments = {name: value for name, value in first.get("init_args", {}).items() if name != "weight"}
    return {"class_path": first["class_path"], **arguments}


def _at(config: Resolved, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read_about(root: Path) -> dict[str, Any]:
    """Reads `study.json` of a study's folder: name, date, digests of arms, software.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        about = read_json(root / RECORD, "the record")
        if isinstance(about["name"], str) and isinstance(about["arms"], dict):
            return about
    except (InputError, KeyError, TypeError):
        pass
    raise InputError(f"'{root / RECORD}' is torn or no study's; delete it, and `study run` writes it anew")


def check_folder(spec: StudySpec, root: Path) -> None:
    """Refuses a folder that belongs to another study or to none.

    Raises:
        InputError: naming the fault and the remedy.
    """
    if root.is_file():
        raise InputError(f"'{root}' is a file; name a folder by --out")
    if not root.is_dir() or not any(not each.name.startswith(".lock") for each in root.iterdir()):
        return
    if not (root / RECORD).is_file():
        raise InputError(f"'{root}' holds no {RECORD}, so it is no study's folder; name another by --out")
    name = read_about(root)["name"]
    if name != spec.name:
        raise InputError(
            f"'{root}' is the folder of the study '{name}', and this is '{spec.name}'; name another by --out"
        )


def check_digests(arms: dict[str, str], root: Path) -> None:
    """Refuses to mix runs with different settings under one arm's name. Arms and seeds may be added or removed."""
    if not (root / RECORD).is_file():
        return
    known: dict[str, str] = read_about(root)["arms"]
    changed = [arm for arm, digest in arms.items() if known.get(arm, digest) != digest]
    if changed:
        names = ", ".join(f"'{arm}'" for arm in changed)
        raise InputError(
            f"'{root}' holds this study with other settings of {names} (configs, flags, budget or their defaults changed): "
            f"write --out another folder, delete '{root}' to start anew, or give the changed arm a new name"
        )


def check_runs(spec: StudySpec, root: Path, resolved: Mapping[str, Resolved]) -> None:
    """Refuses runs in the folder that do not belong to this study.

    Raises:
        InputError: naming the run and the setting that differs.
    """
    for arm in spec.arms:
        for seed in spec.seeds:
            folder = run_folder(root, arm, seed)
            if (folder / "config.yaml").is_file():
                wanted, found = dict(settings(with_seed(resolved[arm], spec, seed))), _recorded(folder, seed)
                other = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
                if other:
                    raise InputError(
                        f"'{folder}' holds a run of another study: {other[0]} is {found.get(other[0])!r} there, and "
                        f"{wanted.get(other[0])!r} in the arm '{arm}'; move it away, or name another --out"
                    )


def _recorded(folder: Path, seed: int) -> dict[str, Any]:
    """Settings that a run was started with, with paths relative to the folder where it began."""
    config: Resolved = read_mapping(folder / "config.yaml", "the run's configuration")
    if not isinstance(config.get("run_dir"), str):
        raise InputError(f"'{folder / 'config.yaml'}' names no run_dir; it is no run of a study, move '{folder}' away")
    return dict(settings(placeless(config, Path(config["run_dir"]).parent.parent, seed)))


def settings(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting by its dotted name, without those of a single run."""
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from settings(part, f"{key}.{name}" if key else str(name))
    # A logger's save_dir depends on the run's folder.
    elif not key.endswith(".save_dir"):
        yield key, value


def claim(spec: StudySpec, source: Path, root: Path, arms: dict[str, str], inputs: Sequence[str] = ()) -> None:
    """Writes the study's files: the study with its include, and a record of it.

    Args:
        spec: Study to record.
        source: File of the study.
        root: Folder of the study.
        arms: Digests of the arms; the record keeps those of arms that the study had before.
        inputs: Weights and labels that all seeds read from one place.
    """
    known: dict[str, Any] = read_about(root) if (root / RECORD).is_file() else {}
    every = {**known.get("arms", {}), **arms}
    record = {
        "digest": study_digest(every),
        "name": spec.name,
        "created": known.get("created", now()),
        "software": _with_own(known.get("software", [])),
        "arms": every,
        "inputs": list(inputs),
    }
    write_whole(root / SPEC, self_contained(source))
    write_whole(root / RECORD, json.dumps(record, indent=1) + "\n")


def note_software(root: Path) -> None:
    """Adds the present software to the study's record if it has changed since the study began.

    Each run imports the packages that are installed when it starts, so software may change between runs.
    """
    about = read_about(root)
    before = about.get("software", [])
    if (known := _with_own(before)) != before:
        write_whole(root / RECORD, json.dumps({**about, "software": known}, indent=1) + "\n")


def _with_own(before: list[dict[str, str]]) -> list[dict[str, str]]:
    own = software()
    return before if own in before else [*before, own]


def alone(root: Path) -> AbstractContextManager[None]:
    """Locks the study's folder, because two calls at once would run the same runs.

    Raises:
        InputError: if another call has the lock, on this or another machine.
    """
    return lock.held(root / ".lock", f"the study's folder '{root}'")
