"""The plan before it is paid for: every operation is run, nothing is trained.

It loads the policy's tokenizer and no weights, reads the training prompts and no validation set, and computes (or takes
from the cache) the feature rows that the operations read.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import lightning
from rich.console import Console

from saerl_lightning import hub, lock
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import InputError
from saerl_lightning.plan_page import tables
from saerl_lightning.plan_page.comparison import compare
from saerl_lightning.plan_page.ledger import FILE, PAGE, Ledger, require_place, write_plan
from saerl_lightning.plan_page.other_trainers import SETTINGS, export_plan, require_export
from saerl_lightning.plan_page.page import render
from saerl_lightning.plan_page.planned import PlannedRun
from saerl_lightning.policy.load import Policy
from saerl_lightning.training.arithmetic import BatchArithmetic
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.training.tables import log_tables, planned_run

LEDGER_ROWS = 1000  # that W&B gets


def plan(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    out: str,
    against: str | None,
    export: str | None = None,
    export_for: str | None = None,
) -> None:
    """Makes the plan, prints its arithmetic and its summary, and writes its ledger and its page.

    Args:
        model: only its tokenizer and its settings are read.
        datamodule: whose plan it is.
        trainer: says how many processes and epochs there would be, and has the loggers.
        out: folder of `ledger.parquet` and `plan.html`.
        against: another plan's ledger; null compares with none.
        export: New folder for the planned prompts in another trainer's form; null writes none.
        export_for: Trainer that reads the exported prompts; null takes `jsonl`, our own form.

    Raises:
        InputError: if the modules plan no prompts, the numbers don't fit, or a file is in the way or unreadable.
    """
    _require_prompts(model, datamodule)
    require_place(Path(out))
    require_export(export, export_for)
    other = None if against is None else Ledger.read(Path(against))
    arithmetic = batch_arithmetic(model, datamodule, trainer)  # refused before anything is computed
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
) -> PlannedRun:
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


def batch_arithmetic(
    model: PolicyModule, datamodule: PromptDataModule, trainer: lightning.Trainer
) -> BatchArithmetic | None:
    """The numbers that `fit` would check and say, the batches still unknown; None for a module that samples nothing.

    Raises:
        InputError: if they don't fit each other.
    """
    if not isinstance(model, GRPOModule):
        return None
    arithmetic = BatchArithmetic(
        prompts=datamodule.batch_size,
        sampling=model.sampling,
        max_prompt_tokens=datamodule.chat.max_prompt_tokens,
        micro_tokens=model.micro_tokens,
        updates_per_batch=model.updates_per_batch,
        ranks=trainer.world_size,
        batches=0,
        context=_context(model.policy),
    )
    arithmetic.check()
    return arithmetic


def _facts(
    arithmetic: BatchArithmetic | None, model: PolicyModule, datamodule: PromptDataModule, trainer: lightning.Trainer
) -> list[str]:
    if arithmetic is None or not isinstance(model, GRPOModule):
        return [f"{len(datamodule.plan.batches()):,} batches of {datamodule.batch_size} prompts an epoch"]
    trainer.datamodule = datamodule  # pyright: ignore[reportAttributeAccessIssue]  # where a module looks for its prompts
    model.trainer = trainer
    return str(replace(arithmetic, batches=model.planned_batches())).split("\n")


def _require_prompts(model: lightning.LightningModule, datamodule: lightning.LightningDataModule) -> None:
    for kind, module, wanted in (("data", datamodule, PromptDataModule), ("model", model, PolicyModule)):
        if not isinstance(module, wanted):
            raise InputError(
                f"{kind} is {type(module).__name__}, which plans no prompts; give the configs of a policy's run, e.g. "
                "-c configs/grpo.yaml -c configs/saerl.yaml"
            )


def _context(policy: Policy) -> int | None:
    """Longest sequence the policy was made for, from its config alone; None where there is no config or it does not say."""
    from transformers import AutoConfig

    hub.look_up(policy.path)
    try:
        config = AutoConfig.from_pretrained(policy.path, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError):
        return None  # a tokenizer is all that a plan needs
    return getattr(config, "max_position_embeddings", None)
