"""Checks a study's arms before anything runs: each is parsed as `fit --print_config` would, and no model is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.study.plan import OWN_FLAGS, arm_arguments, budget_flags
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.training.logged_names import GRPO, SFT, LoggedNames

Resolved = dict[str, Any]

EVALUATION = (  # what must be the same in all arms, or their accuracies are of different things
    "data.init_args.val",
    "data.init_args.test",
    "data.init_args.val_sampling",
    "data.init_args.val_batch_size",  # the samples' random numbers are counted by batch
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)
STEPS = {"GRPOModule": GRPO, "SFTModule": SFT}
SHARED = "SHARED_BY_THE_ARMS"  # in place of `{shared}` while flags are parsed: braces would be read as YAML
PLACES = {"config", "run_dir", "overwrite", "ckpt_path", "weights_only", "seed_everything"}  # of a run, not of an arm


class _Made(Exception):
    """Carries the parser out of LightningCLI's constructor."""


class _ParserOnly(cli.RunCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _Made(parser)


def resolve(spec: StudySpec, root: Path) -> dict[str, Resolved]:
    """Parses every arm and checks them against each other.

    Args:
        spec: the study.
        root: its folder; paths below it appear as `{study}` in what is returned, those of stages as `{shared}`.

    Returns:
        Each arm's whole configuration, without the places of its runs; their seeds are those of the arm's own files.

    Raises:
        InputError: if flags do not parse, two arms are the same, or an arm changes the evaluation.
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


def digests(spec: StudySpec, resolved: Mapping[str, Resolved]) -> dict[str, str]:
    """A digest of each arm, of its configuration, its budget, and of what its seeds have in common."""
    frame = [spec.budget.steps, spec.budget.generated_tokens, sorted(spec.share)]
    texts = {arm: json.dumps([frame, config], sort_keys=True) for arm, config in resolved.items()}
    return {arm: hashlib.sha256(text.encode()).hexdigest()[:16] for arm, text in texts.items()}


def study_digest(arms: Mapping[str, str]) -> str:
    """One digest of all arms' digests."""
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
            words = [word.replace("{shared}", SHARED) for word in arm_arguments(spec, arm)]
            parsed = parser.parse_args([*words, *budget_flags(spec.budget)])
    except SystemExit as end:
        mistake = said.getvalue().strip().removeprefix("error: ").rpartition(" (")[0]
        raise InputError(f"the arm '{arm}' does not parse: {mistake or said.getvalue().strip()}") from end
    return placeless(json.loads(json.dumps(parsed["fit"].as_dict(), default=_plain)), root)


def placeless(config: Resolved, root: Path, seed: int | None = None) -> Resolved:
    """A configuration without its run's places: what is in the study's folder is written `{study}`, a stage's `{shared}`.

    Args:
        config: of an arm, or of a run.
        root: the study's folder.
        seed: of a run, whose own products are written as those that all share; None for an arm.
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
    """The classes at a place that holds one, a list of them, or none: each with `class_path` and `init_args`."""
    given = _at(config, key)
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, dict)]


def sets(config: Resolved) -> dict[str, int]:
    """Samples a question of each validation set; a set's own sampling comes before the general one."""
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
    """A study reads what its runs logged from their CSV files."""
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
    """A comparison of what no run logs would be empty, after all of them."""
    classes = [_at(config, f"{part}.class_path") for part in ("model", "data", "model.init_args.objective")]
    step = STEPS.get(str(classes[0]).rpartition(".")[2])
    if step is not None and all(name is None or name.startswith("saerl_lightning.") for name in classes):
        LoggedNames.of_policy(step, sets(config), None).require(f"the arm '{arm}': the study's metric", spec.metric)


def _refuse_uneven_validation(spec: StudySpec, config: Resolved) -> None:
    """A run's last accuracy must be that of its last step, and all arms' of the same step."""
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
