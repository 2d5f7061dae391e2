"""`simulate`: plays a run's online operation over prompts with known pass rates, in seconds, before a GPU is paid for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from saerl_lightning.data.callback import Online
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.planning import Planner
from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole
from saerl_lightning.online.simulation import World, oracle, play
from saerl_lightning.progress import Bar
from saerl_lightning.ranges import Count, Finite, require_arguments
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import cached
from saerl_lightning.signals.source import SignalSource, features_by
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.verbs.known_rates import KnownRates, labelled_rates, measured_rates

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

NOTE = "nothing learns in a simulation: it tells how many groups vary, and says nothing of accuracy"


class _Remembered(SignalSource):
    """Feature rows of another source, computed once."""

    def __init__(self, source: SignalSource) -> None:
        self.source = source
        self.rows: Features | None = None

    def features(self, prompts: Sequence[Prompt]) -> Features:
        """Returns the rows that were computed first."""
        if self.rows is None:
            self.rows = features_by(self.source, prompts)
        return self.rows

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns the other source's cache key."""
        return self.source.fingerprint(prompts)


def simulate(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    steps: Count,
    seeds: Count,
    label: str,
    rates: str | None,
    offset: Finite,
    shift: Finite,
    out: str | None,
) -> None:
    """Plays the plan, the online operation and an oracle over the pool, and prints how many of their groups vary.

    Args:
        model: Module of the run; its tokenizer and group size are read.
        datamodule: Datamodule of the run.
        trainer: Trainer of the run.
        steps: Number of steps of each play.
        seeds: Number of plays, each with a starting order and answers of its own.
        label: Label from 0 (always right) to 100 (always wrong) that gives the true pass rates.
        rates: Path of a run's `served.parquet`, whose measured pass rates are taken in place of the label; prompts that it
            did not measure are left out. Null reads the label.
        offset: Number added to the logits of all pass rates.
        shift: Number that each step adds to the logits.
        out: File for the numbers of every play, as JSON; null writes none.

    Raises:
        InputError: if there is no online operation, pass rates are not known, or a number is out of range.
    """
    require_arguments(simulate, {"steps": steps, "seeds": seeds, "offset": offset, "shift": shift})
    if "online" not in datamodule.operations:
        raise InputError("data.online is null, so there is nothing to simulate; give -c online/mopps.yaml, for example")
    if not isinstance(model, GRPOModule):
        raise InputError(f"model is {type(model).__name__}, which samples no groups; give the configs of GRPO's run")
    datamodule.tokenizer = model.tokenizer
    pool = datamodule.pool
    known = (
        labelled_rates(label, pool.prompts)
        if rates is None
        else measured_rates(rates, pool.prompts, datamodule.batch_size)
    )
    world = World(known.rates, model.sampling.group_size, offset, shift)
    plays = _played(datamodule, known, world, steps, seeds)
    if known.said:
        print(known.said)
    Console(width=120).print(table(plays, steps, seeds))
    print(NOTE)
    if out is not None:
        write_whole(Path(out), json.dumps({"steps": steps, "plays": plays}, indent=1))
        print(f"wrote {out}")


def _played(
    datamodule: PromptDataModule, known: KnownRates, world: World, steps: int, seeds: int
) -> dict[str, list[dict[str, float]]]:
    """Plays each arm once a seed; the arms of a seed share the plan and the luck of the answers."""
    pool, signals = datamodule.pool, datamodule.signals
    if signals is not None:
        folder = datamodule.signal_cache
        signals = _Remembered(signals if folder is None else cached(signals, folder))
    operations = datamodule.operations
    for operation in operations.values():
        if isinstance(operation, Online):
            operation.group_size = world.group_size
    plays: dict[str, list[dict[str, float]]] = {"the plan as it is": [], "online": [], "oracle": []}
    for seed in Bar(range(seeds), total=seeds, desc="simulating", unit="play"):
        planner = Planner(datamodule.batch_size, seed, signals, operations, datamodule.reference)
        plan, _ = planner.plan(pool.prompts, pool.too_long | known.left_out)
        fixed = {slot: each for slot, each in operations.items() if slot != "online"}
        for name, arm in zip(plays, (fixed, operations, {"online": oracle(world)}), strict=True):
            plays[name].append(play(arm, plan, pool.prompts, world, steps, seed))
    return plays


def table(plays: dict[str, list[dict[str, float]]], steps: int, seeds: int) -> Table:
    """Makes a table of the arms: means over seeds with 95 % intervals of t, and the differences from the plan as it is."""
    shown = Table(title=f"{steps} steps, {seeds} seeds: share of groups that vary", title_justify="left")
    for column in ("arm", "vary", "less the plan", "predicted", "Brier", "error of pass rates"):
        shown.add_column(column, justify="left" if column == "arm" else "right")
    base = np.array([each["effective"] for each in plays["the plan as it is"]])
    for name, runs in plays.items():
        varied = np.array([each["effective"] for each in runs])
        told = [_mean(runs, key) for key in ("effective_predicted", "brier", "pass_rate_error")]
        less = "" if name == "the plan as it is" else _interval(varied - base, sign=True)
        shown.add_row(name, _interval(varied), less, *told)
    return shown


def _mean(runs: list[dict[str, float]], key: str) -> str:
    values = [each[key] for each in runs if key in each]
    return f"{np.mean(values):.3f}" if values else ""


def _interval(values: np.ndarray, sign: bool = False) -> str:
    mean = f"{values.mean():+.3f}" if sign else f"{values.mean():.3f}"
    if len(values) < 2:
        return mean
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:.3f}"
