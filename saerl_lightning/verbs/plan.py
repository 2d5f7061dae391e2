"""`plan`: runs every operation on the training prompts and shows the plan, without training.

It loads the policy's tokenizer but no weights, and reads the training prompts but no validation set. Feature rows that
operations need are computed, or read from the cache.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import lightning
from rich.console import Console

from saerl_lightning import hub, lock
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.ordering import one_end
from saerl_lightning.errors import InputError
from saerl_lightning.plan_page import tables
from saerl_lightning.plan_page.comparison import compare
from saerl_lightning.plan_page.ledger import FILE, PAGE, Ledger, require_place, write_plan
from saerl_lightning.plan_page.other_trainers import SETTINGS, export_plan, require_export
from saerl_lightning.plan_page.page import render
from saerl_lightning.plan_page.planned import MadePlan
from saerl_lightning.policy.load import Policy
from saerl_lightning.training.arithmetic import BatchArithmetic
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.training.tables.plan_table import log_tables, planned_run
from saerl_lightning.verbs.needed_memory import needed_memory

LEDGER_ROWS = 1000  # largest number of rows that are sent to W&B


def plan(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    out: str,
    against: str | None,
    export: str | None = None,
    export_for: str | None = None,
) -> None:
    """Makes the plan, prints the memory of a run, its batch arithmetic and summary, and writes its ledger and page.

    Args:
        model: Module of which only the tokenizer and settings are read.
        datamodule: Datamodule whose plan is made.
        trainer: Trainer that gives numbers of processes and epochs, and the loggers.
        out: Folder for `ledger.parquet` and `plan.html`.
        against: Path of another plan's ledger to compare with; null compares with none.
        export: New folder for the planned prompts in another trainer's form; null writes none.
        export_for: Trainer that reads the exported prompts; null takes `jsonl`, our own form.

    Raises:
        InputError: if the modules plan no prompts, batch numbers do not fit, or a file is in the way or unreadable.
    """
    _require_prompts(model, datamodule)
    require_place(Path(out))
    require_export(export, export_for, datamodule.chat)
    other = None if against is None else Ledger.read(Path(against))
    # Numbers that do not fit are refused before anything is computed.
    arithmetic = batch_arithmetic(model, datamodule, trainer.world_size)
    if (memory := needed_memory(model, datamodule, trainer)) is not None:
        print(memory, flush=True)
    with lock.held(lock.beside(Path(out)), f"the plan's folder '{out}'"):
        run = _plan_into(Path(out), model, datamodule, trainer, other, arithmetic)
        if export is not None:
            group_size = arithmetic.sampling.group_size if arithmetic else 1
            name = export_for or "jsonl"
            settings = export_plan(Path(export), name, run, datamodule.chat, group_size)
            print(f"wrote {export} for {name}; settings that keep the order ({Path(export, SETTINGS)}):")
            print(*(f"  {line}" for line in settings), sep="\n")


def _plan_into(
    out: Path,
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    other: Ledger | None,
    arithmetic: BatchArithmetic | None,
) -> MadePlan:
    datamodule.tokenizer = model.tokenizer
    datamodule.keep_features = True
    datamodule.set_up_plan()
    run = planned_run(datamodule)
    compared = None if other is None else compare(other, run.ledger)
    facts = _facts(arithmetic, model, datamodule, trainer)
    console = Console(width=None if sys.stdout.isatty() else 120)
    print(*facts, sep="\n", flush=True)
    tables.show([*tables.summary(run), *(tables.comparison(compared) if compared else [])], console)
    write_plan(out, run.ledger, render(run, facts, compared))
    log_tables(trainer.loggers, run, LEDGER_ROWS)
    print(f"wrote {out / FILE} and {out / PAGE}")
    return run


def batch_arithmetic(model: PolicyModule, datamodule: PromptDataModule, ranks: int) -> BatchArithmetic | None:
    """Computes the batch numbers that `fit` would check and print; None for a module that samples nothing.

    Args:
        model: Module of the run; only its settings are read.
        datamodule: Datamodule of the run; its prompts are not read.
        ranks: Number of processes that share a batch.

    Raises:
        InputError: if the numbers do not fit each other.
    """
    if not isinstance(model, GRPOModule):
        return None
    arithmetic = BatchArithmetic.of(model, datamodule, ranks, batches=0, context=_context(model.policy))
    arithmetic.check()
    model.engine.require_processes(ranks)
    return arithmetic


def _facts(
    arithmetic: BatchArithmetic | None, model: PolicyModule, datamodule: PromptDataModule, trainer: lightning.Trainer
) -> list[str]:
    if arithmetic is None or not isinstance(model, GRPOModule):
        return [f"{len(datamodule.plan.batches()):,} batches of {datamodule.batch_size} prompts an epoch"]
    trainer.datamodule = datamodule  # pyright: ignore[reportAttributeAccessIssue]  # where a module looks for its prompts
    model.trainer = trainer
    batches = model.planned_batches()
    end = one_end(datamodule.plan, batches, model.updates_per_batch)
    return [*str(replace(arithmetic, batches=batches)).split("\n"), *([f"warning: {end}"] if end else [])]


def _require_prompts(model: lightning.LightningModule, datamodule: lightning.LightningDataModule) -> None:
    for kind, module, wanted in (("data", datamodule, PromptDataModule), ("model", model, PolicyModule)):
        if not isinstance(module, wanted):
            raise InputError(
                f"{kind} is {type(module).__name__}, which plans no prompts; give the configs of a policy's run, e.g. "
                "-c configs/grpo.yaml -c configs/saerl.yaml"
            )


def _context(policy: Policy) -> int | None:
    """Longest sequence that the policy supports, from its config; None if there is no config or no such number."""
    from transformers import AutoConfig

    hub.look_up(policy.path)
    try:
        config = AutoConfig.from_pretrained(policy.path, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError):
        return None  # a plan needs only a tokenizer, so a missing config is no error
    return getattr(config, "max_position_embeddings", None)
