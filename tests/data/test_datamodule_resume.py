"""PromptDataModule after any interruption: the rest is served, once, whatever the checkpoint was made by."""

import pytest
import torch

from saerl_lightning.data.serving import Progress
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from tests.data.served_prompts import (
    TOKENIZER,
    ListPrompts,
    Recorder,
    Refilling,
    SaveEverywhere,
    a_quiet_trainer,
    fit,
    make,
    prompts,
    trainer,
)

__all__ = ["a_quiet_trainer"]


@pytest.mark.parametrize("limit", [1.0, 2])
@pytest.mark.parametrize("validate_every", [1, 2])
def test_resuming_anywhere_serves_exactly_the_rest(tmp_path, limit, validate_every):
    def run(ckpt_path=None, **arguments):
        data = make(val={"v": ListPrompts(prompts(3, "v"))})
        every = {"val_check_interval": validate_every, "limit_train_batches": limit, "max_epochs": 3}
        return fit(data, ckpt_path, **every, **arguments)

    whole = run(callbacks=[SaveEverywhere(tmp_path)])
    steps = 9 if limit == 1.0 else 6
    assert len(whole.served) == steps
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) >= steps + 3 + 3  # batches, validations, epochs
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.split("-")[0])
        resumed = run(checkpoint)
        assert resumed.served == whole.served[done:], checkpoint.name
        assert resumed.weight.item() == whole.weight.item()
    state = torch.load(tmp_path / "2-batch.ckpt", weights_only=True)["PromptDataModule"]
    assert (state["served"], state["batches"]) == ((8, 2) if limit == 1.0 else (0, 0))


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 7), (5, 5)])
@pytest.mark.parametrize("validate_every", [1.0, 0.5, 2])
def test_resuming_after_refills_serves_exactly_the_rest(tmp_path, limit, steps, validate_every):
    """37 prompts are 9 batches and one left over; refills make them 7."""

    def run(ckpt_path=None, **arguments):
        data, module = make(37, val={"v": ListPrompts(prompts(3, "v"))}), Refilling()
        every = {
            "val_check_interval": validate_every,
            "limit_train_batches": limit,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
        }
        trainer(**every, **arguments).fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, data

    whole, data = run(callbacks=[SaveEverywhere(tmp_path)])
    assert whole.batches_seen == [*range(steps)] * 2
    epoch = [row for rows in whole.served[:steps] for row in rows]
    assert epoch == data.plan.rows[: len(epoch)].tolist()  # each once, in order
    assert whole.served == whole.served[:steps] * 2
    if limit == 1.0:
        assert len(epoch) == 37
        assert [len(rows) for rows in whole.served[:7]] == [4, 7, 7, 5, 6, 4, 4]  # 0 + 0, 11 % 4 = 3, 7 % 4 = 3, ...
    # 1.0: at the epoch's end, wherever it is; 0.5 of 9 or 5 batches: 4 and the end, or 2 and 4; 2: 2, 4 (and 6)
    validations = {(1.0, 1.0): 2, (1.0, 5): 2, (0.5, 1.0): 4, (0.5, 5): 4, (2, 1.0): 6, (2, 5): 4}
    assert len(whole.validated) == validations[validate_every, limit]
    for checkpoint in sorted(tmp_path.iterdir()):
        done = int(checkpoint.stem.split("-")[0])
        resumed, _ = run(checkpoint)
        assert resumed.served == whole.served[done:], checkpoint.name
        assert resumed.batches_seen == whole.batches_seen[done:]
        assert resumed.weight.item() == whole.weight.item()


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    fit(make(), callbacks=[SaveEverywhere(tmp_path)])
    checkpoint = tmp_path / "1-batch.ckpt"
    saved = make()
    saved.tokenizer = TOKENIZER
    saved.setup("fit")
    for other in (make(mixing=None), make(curriculum=None), make(batch_size=2), make(15)):
        with pytest.raises(InputError, match=f"plan is {saved.state_dict()['plan']}, this run's is .*ckpt_path"):
            fit(other, ckpt_path=checkpoint)
    changed = prompts(14)
    changed[3] = Prompt("p3", changed[3].messages, "another answer", topic="b", labels=changed[3].labels)
    with pytest.raises(InputError, match="plan is"):
        fit(make(train=ListPrompts(changed)), ckpt_path=checkpoint)


def test_validating_a_checkpoint_takes_no_cursor_from_it(tmp_path):
    data = make(val={"v": ListPrompts(prompts(3, "v"))})
    fit(data, callbacks=[SaveEverywhere(tmp_path)], limit_val_batches=0)
    trainer().validate(Recorder(), datamodule=data, ckpt_path=tmp_path / "1-batch.ckpt")
    assert fit(data, limit_val_batches=0).served == data.plan.batches().tolist()
    other = make(7, mixing=None, val={"v": ListPrompts(prompts(3, "v"))})
    trainer().validate(Recorder(), datamodule=other, ckpt_path=tmp_path / "1-batch.ckpt")


class Events(Refilling):
    """Notes steps and validations in their order, and makes the validation that a checkpoint left to be made."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, object]] = []

    def on_train_start(self):
        self.trainer.datamodule.resume.validate_if_due(self.trainer)

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.events.append(("step", self.served[-1]))

    def on_validation_start(self):
        self.events.append(("validation", self.trainer.global_step))


class SaveWithEvents(SaveEverywhere):
    """Notes how much had happened when each checkpoint was saved."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.seen: dict[str, int] = {}

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        super().on_train_batch_end(trainer)
        self.seen[f"{trainer.global_step}-batch"] = len(pl_module.events)

    def on_validation_end(self, trainer, pl_module) -> None:
        super().on_validation_end(trainer)
        self.seen[f"{trainer.global_step}-validation"] = len(pl_module.events)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        super().on_train_epoch_end(trainer)
        self.seen[f"{trainer.global_step}-epoch"] = len(pl_module.events)


def with_events(ckpt_path=None, keep=None, **arguments) -> Events:
    """Refills make nine batches seven; ends as the command line does, which validates where no step is left."""
    module, data = Events(), make(37, val={"v": ListPrompts(prompts(3, "v"))})
    made = trainer(num_sanity_val_steps=0, **arguments)
    made.fit(module, datamodule=data, ckpt_path=ckpt_path)
    if data.resume.validation_due:
        made.validate(module, datamodule=data, verbose=False)
    if keep is not None:
        made.save_checkpoint(keep)
    return module


ENDS = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 16}}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("validate_every", [1.0, 0.5, 3])
def test_a_checkpoint_from_anywhere_goes_on_with_the_rest_and_its_validations(tmp_path, end, validate_every):
    """From behind a batch, a validation, an epoch: the steps and validations that are left, each once, in order."""
    save = SaveWithEvents(tmp_path)
    whole = with_events(callbacks=[save], val_check_interval=validate_every, **end)
    assert whole.served == (whole.served[:7] * 3)[: len(whole.served)] and len(whole.served) in (16, 21)
    assert sum(kind == "validation" for kind, _ in whole.events) in (2, 3, 4, 5, 6)
    assert {name.partition("-")[2] for name in save.seen} == {"batch", "validation", "epoch"}
    for name, seen in save.seen.items():
        resumed = with_events(tmp_path / f"{name}.ckpt", val_check_interval=validate_every, **end)
        assert resumed.events == whole.events[seen:], name
        assert resumed.weight.item() == whole.weight.item()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "first", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 7}, {"max_epochs": -1, "max_steps": 9}]
)
def test_a_checkpoint_saved_after_fit_goes_on_rightly(tmp_path, end, first):
    """`fit` ended at an epoch's end, by epochs or by steps, or inside the second epoch."""
    whole = with_events(**end)
    begun = with_events(keep=tmp_path / "after.ckpt", **first)
    resumed = with_events(tmp_path / "after.ckpt", **end)
    assert begun.served + resumed.served == whole.served
    assert resumed.weight.item() == whole.weight.item()


def test_checkpoints_that_count_batches_are_read():
    data = make()
    data.tokenizer = TOKENIZER
    data.setup("fit")
    data.planned.load_state_dict({"cursor": 2, "plan": data.planned.digest})
    assert data.planned.progress == Progress(batches=2, prompts=8)
    assert [batch.rows for batch in data.train_dataloader()] == data.plan.batches()[2:].tolist()
