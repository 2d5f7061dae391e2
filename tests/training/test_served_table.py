"""A run with an online operation leaves what it served: the file agrees with the steps as they were sampled."""

from collections import Counter

import lightning
import numpy as np
import pytest

from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.selection import Selection
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.plan_page.served import Served
from saerl_lightning.training.tables.plan_table import PlanTable
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


def test_a_run_without_one_leaves_none(tiny, tmp_path):
    fit(module(tiny), data(), trainer(tmp_path, 1, (PlanTable(),)))
    assert (tmp_path / "ledger.parquet").is_file()
    assert not (tmp_path / "served.parquet").exists()
