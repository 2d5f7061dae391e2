"""A run that was stopped and resumed leaves the rows of one that nobody stopped, whatever stopped it."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.training.checkpoints import WholeCheckpoints
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from tests.cli.test_nothing_lost import in_step

STEPS, AT = 8, 4  # of the run, and where it is stopped; there a checkpoint and a validation are due too
CLOCK = ("time/", "throughput/", "epoch")


def rows(run_dir: Path) -> list[tuple[int, str, str]]:
    """Step, metric and value of every cell of all CSV files, without what a clock says."""
    found = []
    for file in sorted(run_dir.glob("csv/version_*/metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                cells = {name: value for name, value in row.items() if value and name != "step"}
                named = {n: v for n, v in cells.items() if not n.startswith(CLOCK) and not n.endswith("/seconds")}
                found += [(int(row["step"]), name, value) for name, value in named.items()]
    return sorted(found)


def flags(workplace, *more: str) -> list[str]:
    steps = [f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=-1", "--checkpoint.every_n_train_steps=2"]
    return workplace.command("fit", *steps, workplace.with_dev(), "--trainer.val_check_interval=4", *more)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, policy) -> list[tuple[int, str, str]]:
    from tests.cli.conftest import Workplace

    whole = Workplace(tmp_path_factory.mktemp("uninterrupted"), policy)
    cli.run(flags(whole))
    return rows(whole.run_dir)


def resumed(workplace, door, *more: str) -> list[tuple[int, str, str]]:
    assert door(["fit", "-c", f"{workplace.run_dir}/config.yaml", "--ckpt_path=last", *more]).code == 0
    assert torch.load(workplace.last, weights_only=True)["global_step"] == STEPS
    return rows(workplace.run_dir)


def steps_of(cells: list[tuple[int, str, str]]) -> set[int]:
    return {step for step, name, _ in cells if name == "loss"}


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, AT), (signal.SIGTERM, AT + 1), (signal.SIGINT, 6)],  # with a validation, alone, at an epoch's end
)
def test_after_a_signal(workplace, door, uninterrupted, number, step):
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, step, lambda: os.kill(os.getpid(), number))
        assert door(flags(workplace)).code == 128 + number
    assert steps_of(rows(workplace.run_dir)) == set(range(step))
    assert resumed(workplace, door) == uninterrupted


def test_logged_rows_are_whole_after_a_signal_in_a_validation(workplace, door, uninterrupted, monkeypatch):
    evaluate = PolicyModule._evaluate

    def signalled(self, *given):
        evaluate(self, *given)
        if self.global_step == AT:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyModule, "_evaluate", signalled)
        assert door(flags(workplace)).code == 130
    assert resumed(workplace, door) == uninterrupted


def test_logged_rows_are_whole_after_two_signals_while_a_checkpoint_is_written(
    workplace, door, uninterrupted, monkeypatch
):
    """The second does not wait; the checkpoint is whole by then, so its step counts."""
    save = WholeCheckpoints.save_checkpoint

    def signalled(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if checkpoint["global_step"] == AT:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(WholeCheckpoints, "save_checkpoint", signalled)
        assert door(flags(workplace)).code == 130
    assert torch.load(workplace.last, weights_only=True)["global_step"] == AT
    assert resumed(workplace, door) == uninterrupted


def fail(*_) -> None:
    raise RuntimeError("a fault")


def test_after_an_exception_in_a_step(workplace, door, uninterrupted):
    """Steps behind the last checkpoint are taken once more: their rows stand twice, and say the same."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="a fault"):
        in_step(patch, AT + 2, fail)
        door(flags(workplace))
    assert steps_of(rows(workplace.run_dir)) == set(range(AT + 1))
    together = resumed(workplace, door)
    assert sorted(set(together)) == uninterrupted and len(together) > len(uninterrupted)


def test_logged_rows_are_whole_after_an_exception_at_the_end_of_a_step(workplace, door, uninterrupted, monkeypatch):
    """Behind the callbacks, so the step is in the checkpoint already."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a fault"):
        patch.setattr(PolicyModule, "on_train_batch_end", lambda self, *_: self.global_step == AT and fail())
        door(flags(workplace))
    assert steps_of(rows(workplace.run_dir)) == set(range(AT))
    assert resumed(workplace, door) == uninterrupted


@pytest.mark.parametrize("place", ["descend", "observe"])
def test_what_is_saved_upon_an_exception_holds_whole_steps(workplace, door, uninterrupted, monkeypatch, place):
    """A step that raised behind its update has weights of its own, but neither a row nor its place in the plan."""
    own = getattr(GRPOModule, place)
    step = AT + 2 - (place == "descend")  # as the counter stands there

    def fails(self, *given):
        return fail() if self.global_step == step else own(self, *given)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a fault"):
        patch.setattr(GRPOModule, place, fails)
        door(flags(workplace, "--checkpoint.save_on_exception=true"))
    together = resumed(workplace, door)
    assert sorted(set(together)) == uninterrupted
    assert (len(together) == len(uninterrupted)) == (place == "descend")


def test_after_the_time_is_up(workplace, door, uninterrupted, monkeypatch):
    from lightning.pytorch.callbacks import Timer

    with monkeypatch.context() as patch:
        taken: list[int] = []
        in_step(patch, AT, lambda: taken.append(1))
        patch.setattr(Timer, "_check_time_remaining", lambda self, t: setattr(t, "should_stop", bool(taken)))
        assert door(flags(workplace, f"--trainer.max_time={json.dumps({'hours': 1})}")).code == 0
    assert steps_of(rows(workplace.run_dir)) == set(range(AT))
    assert resumed(workplace, door) == uninterrupted


def test_after_the_budget_of_tokens(workplace, door, uninterrupted):
    """Each step generates at most 2 x 4 x 8 = 64 tokens, and in fact nearly so: 4 steps reach 200."""
    budget = {"class_path": "TokenBudget", "init_args": {"tokens": 200}}
    assert door(flags(workplace, f"--trainer.callbacks+={json.dumps(budget)}")).code == 0
    stopped = steps_of(rows(workplace.run_dir))
    assert stopped == set(range(len(stopped))) and 0 < len(stopped) < STEPS
    again = ["fit", "-c", f"{workplace.run_dir}/config.yaml", "--ckpt_path=last"]
    assert door(again).code == 0
    assert steps_of(rows(workplace.run_dir)) == stopped  # the budget is spent: no step more
    budget["init_args"]["tokens"] = 10**6
    callbacks = json.dumps([{"class_path": "ValidateAtStart"}, budget])
    together = resumed(workplace, door, f"--trainer.callbacks={callbacks}")
    assert set(uninterrupted) <= set(together)
