"""What an online operation served, as a file and a page of the run's folder, and as tables of W&B."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from saerl_lightning.files import write_whole
from saerl_lightning.online.operation import Learner
from saerl_lightning.plan_page.served import RATES, SERVED, WHOLE, Served
from saerl_lightning.plan_page.served_page import fates, reliability_table, render_served, waits

if TYPE_CHECKING:
    from saerl_lightning.data.module import PromptDataModule

PAGE = "served.html"


def served_of(datamodule: PromptDataModule) -> Served | None:
    """Collects what a datamodule's online operation has served so far; None without one that keeps a history."""
    operation = datamodule.operations.get("online")
    if not isinstance(operation, Learner):
        return None
    history, prompts = operation.history, datamodule.pool.prompts
    columns = {name: history.columns[name][: len(prompts)] for name in (*WHOLE, *RATES)}
    columns |= {name: columns[name].astype(np.int64) for name in WHOLE}
    why = np.array(history.reasons, dtype=object)[history.columns["why"][: len(prompts)].astype(np.int64)]
    uid = np.array([prompt.uid for prompt in prompts], dtype=object)
    return Served({"uid": uid, **columns, "why": why}, np.array(history.steps).reshape(-1, 4), history.reliability)


def excluded(datamodule: PromptDataModule) -> list[str]:
    """Returns the reason of each prompt that the plan had and that is served no more."""
    planned, now = datamodule.plan.dropped, datamodule.planned.sampler.plan.dropped
    return [why for row, why in now.items() if row not in planned]


def write_served(folder: Path, datamodule: PromptDataModule, loggers: Iterable[Logger] = ()) -> None:
    """Writes the file and the page; does nothing without an online operation that keeps a history.

    Args:
        folder: Folder of the run.
        datamodule: Datamodule of the run.
        loggers: Loggers that get the page's tables; only W&B has some.
    """
    served = served_of(datamodule)
    if served is None:
        return
    gone = excluded(datamodule)
    served.write(folder / SERVED)
    write_whole(folder / PAGE, render_served(served, gone))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for table in (fates(served, gone), waits(served), reliability_table(served)):
                rows = [list(row) for row in table.rows]
                logger.log_table(f"served/{table.key}", columns=list(table.columns), data=rows)
