"""Which limit ends a run: said before it trains where it is not the steps that were asked for, and where none is left."""

import re

import pytest

from saerl_lightning import cli

SAID = r"^trainer.max_epochs 1 ends this run after {} steps \(1 pass over the data\), before trainer.max_steps 400; .*"
PASSES = "write --trainer.max_epochs -1"
BATCHES = 6  # of 2 prompts, out of 12


def lines(capsys, begin: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(begin)]


def fit(workplace, **settings) -> None:
    cli.run(workplace.command("fit", *(f"--{name.replace('__', '.')}={value}" for name, value in settings.items())))


@pytest.mark.parametrize(("updates", "steps"), [(1, BATCHES), (2, 2 * BATCHES)])
def test_epochs_that_end_a_run_before_its_steps_are_told_before_it(workplace, capsys, updates, steps):
    fit(workplace, trainer__max_steps=400, model__updates_per_batch=updates)
    said = capsys.readouterr().out
    assert len(re.findall(SAID.format(steps), said, re.MULTILINE)) == 1
    assert PASSES in said and said.index("trainer.max_epochs 1") < said.index(f"finished: {steps} steps")
    assert said.rstrip().endswith("--ckpt_path last --trainer.max_epochs -1")


@pytest.mark.parametrize(
    "limits",
    [{"max_steps": 2}, {"max_steps": BATCHES}, {"max_steps": 7, "max_epochs": -1}, {"max_steps": -1}],
    ids=str,
)
def test_nothing_is_said_where_steps_end_the_run_or_none_were_asked_for(workplace, capsys, limits):
    fit(workplace, **{f"trainer__{name}": value for name, value in limits.items()})
    assert not lines(capsys, "trainer.max_epochs")


def test_a_resumed_run_without_a_step_left_says_why(workplace, capsys):
    fit(workplace, trainer__max_steps=400)
    capsys.readouterr()
    again = {"ckpt_path": "last"}
    fit(workplace, trainer__max_steps=60, **again)
    [said] = lines(capsys, "no step was left")
    assert said.startswith(f"no step was left to take: the checkpoint has {BATCHES}, and trainer.max_epochs 1 ends")
    assert PASSES in said
    fit(workplace, trainer__max_steps=BATCHES, **again)
    assert lines(capsys, "no step was left")[0].endswith(f"has {BATCHES}, and trainer.max_steps is {BATCHES}")
    fit(workplace, trainer__max_steps=BATCHES + 1, trainer__max_epochs=-1, **again)
    said = capsys.readouterr().out
    assert "no step was left" not in said and f"finished: {BATCHES + 1} steps" in said


def test_a_run_without_tokens_left_says_that_its_budget_is_used_up(workplace, capsys):
    budget = '{"class_path": "TokenBudget", "init_args": {"tokens": 1}}'
    for more in ({}, {"ckpt_path": "last"}):
        command = [f"--trainer.callbacks+={budget}", "--trainer.max_steps=4", *(f"--{k}={v}" for k, v in more.items())]
        cli.run(workplace.command("fit", *command))
    said = capsys.readouterr().out
    assert said.count("finished: 1 step in ") == 2
    assert said.count("and the 1 tokens of TokenBudget are used up; give it more") == 1
    assert "max_epochs" not in said  # which would change nothing


def test_what_a_finished_run_says_goes_on_beyond_its_epochs(workplace, capsys):
    fit(workplace, trainer__max_steps=4)
    assert capsys.readouterr().out.rstrip().endswith("--trainer.max_steps 8 --trainer.max_epochs -1")
