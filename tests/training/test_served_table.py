"""A run with an online operation leaves what it served: the file agrees with the steps as they were sampled."""

from collections import Counter

import lightning
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.selection import Selection
from saerl_lightning.plan_page.ledger import COLUMNS, Ledger
from saerl_lightning.plan_page.served import Served
from saerl_lightning.training.tables.plan_table import PlanTable, ledger_rows, log_tables
from tests.plan_page.conftest import make_run
from tests.training.conftest import Sums, data, fit, module, trainer


class Watch(lightning.Callback):
    """Counts what each step sampled, by the module's own last step."""

    def __init__(self):
        self.groups, self.right, self.steps, self.rates = Counter(), Counter(), [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        step = pl_module.last_step
        uids = [prompt.uid for prompt in step.batch.prompts]
        self.steps.append(uids)
        self.rates.append(step.total.double().mean().item())
        for uid, row in zip(uids, step.total.tolist(), strict=True):
            self.groups[uid] += 1
            self.right[uid] += sum(row)


@pytest.mark.filterwarnings("ignore:set .v.. 12 of its 16")
def test_a_run_writes_what_it_served(tiny, tmp_path):
    watch, prompts = Watch(), Sums(12)
    served = data(train=prompts, online=Selection(PromptBeta(), Admit(0.75)), val={"v": Sums(16)}, shuffle_seed=None)
    run = trainer(tmp_path, 7, (PlanTable(), watch), val_check_interval=2, check_val_every_n_epoch=None)
    fit(module(tiny), served, run)
    found = Served.read(tmp_path / "served.parquet")
    columns = found.columns
    uids = columns["uid"].tolist()
    assert uids == [prompt.uid for prompt in served.pool.prompts]
    assert columns["groups"].tolist() == [watch.groups[uid] for uid in uids]
    assert columns["times_served"].tolist() == columns["groups"].tolist()
    assert columns["right"].tolist() == [watch.right[uid] for uid in uids]
    assert columns["graded"].tolist() == [8 * watch.groups[uid] for uid in uids]
    assert len(found.steps) == 7 == len(watch.steps)
    last = {uid: step for step, uids in enumerate(watch.steps) for uid in uids}
    assert columns["last_step"].tolist() == [last.get(uid, -1) for uid in uids]
    np.testing.assert_allclose(found.steps[:, 1], watch.rates)
    assert columns["waits"].sum() > 0 and set(columns["why"]) == {"", "chance to vary below 0.75"}
    table = Ledger.read(tmp_path / "ledger.parquet").to_pandas()
    assert table.groups.tolist() == [watch.groups[uid] for uid in table.uid] and set(table.fate) == {"served"}
    assert "What became of the prompts" in (tmp_path / "served.html").read_text()


class Tables(WandbLogger):
    """Keeps the tables that would be sent."""

    def __init__(self):
        self.sent = {}

    def log_table(self, key, columns=None, data=None, **_):
        self.sent[key] = columns, data


def test_tables_go_to_wandb_alone_with_a_sample_of_the_ledger(tmp_path):
    """Ten of 60 rows, evenly spaced; p0 was dropped, and NaN becomes null."""
    wandb, run = Tables(), make_run()
    log_tables([CSVLogger(tmp_path), wandb], run, 10)
    assert {"plan/overview", "plan/not_served", "plan/clusters", "plan/operations", "plan/ledger"} == set(wandb.sent)
    columns, rows = wandb.sent["plan/ledger"]
    assert columns == COLUMNS and [row[0] for row in rows] == [0, 6, 13, 19, 26, 32, 39, 45, 52, 59]
    assert rows[0][1:3] == ["p0", "dropped"] and len(ledger_rows(run.ledger, 1000)) == 60


def test_a_run_without_an_online_operation_leaves_no_served_file(tiny, tmp_path):
    fit(module(tiny), data(), trainer(tmp_path, 1, (PlanTable(),)))
    assert (tmp_path / "ledger.parquet").is_file()
    assert not (tmp_path / "served.parquet").exists()
