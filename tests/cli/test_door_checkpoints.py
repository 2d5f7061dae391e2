"""Checkpoints that a run can't take up: of another optimiser, of weights alone, damaged. One line, and nothing is written."""

import re

import pytest
import torch

from saerl_lightning import cli
from tests.cli.conftest import record, write_prompts
from tests.cli.test_door import the_line


def without(*names: str):
    return lambda saved: {name: value for name, value in saved.items() if name not in names}


def having(**values):
    return lambda saved: {**saved, **values}


def of_another_shape(saved: dict) -> dict:
    saved["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)
    return saved


def of_fewer_weights(saved: dict) -> dict:
    del saved["optimizer_states"][0]["param_groups"][0]["params"][3:]
    return saved


WHOLE = "RUN/checkpoints/last.ckpt"
NEVER = {  # of no use to any verb
    "a list": (lambda saved: [1], f"is no checkpoint of a run: it has no state_dict of tensors; write e.g. {WHOLE}"),
    "a tensor": (lambda saved: torch.zeros(3), "has no state_dict of tensors"),
    "weights that are a list": (having(state_dict=[1]), "has no state_dict of tensors"),
    "weights that are numbers": (having(state_dict={"model.a": 3}), "has no state_dict of tensors"),
    "bare weights": (lambda saved: {"state_dict": saved["state_dict"]}, "says None for the version of Lightning"),
    "an odd version": (having(**{"pytorch-lightning_version": "x"}), "says 'x' for the version of Lightning"),
}
HELD = "can't be gone on with: it holds no "
NOT_TO_GO_ON = {
    "weights alone": (
        without("optimizer_states", "lr_schedulers", "callbacks"),
        f"{HELD}state of an optimiser.*export it",
    ),
    "no optimiser": (having(optimizer_states=[]), f"{HELD}state of an optimiser"),
    "an odd optimiser": (having(optimizer_states=5), f"{HELD}state of an optimiser"),
    "no schedules": (without("lr_schedulers"), f"{HELD}learning rates"),
    "no loops": (without("loops"), f"{HELD}place in the run"),
    "odd loops": (having(loops=7), f"{HELD}place in the run"),
    "odd callbacks": (having(callbacks=[1]), f"{HELD}state of the callbacks"),
    "an odd step": (having(global_step="x"), f"{HELD}step and epoch"),
}
LATER = {  # seen once the run's own weights are there
    "another shape": (of_another_shape, r"optimiser is damaged, .* exp_avg of weight 0 is \(3,\), and the weight \("),
    "fewer weights": (of_fewer_weights, "optimiser trains 3 weights, and this run"),
}


def changed(trained, workplace, change) -> str:
    file = workplace.folder / "given.ckpt"
    torch.save(change(torch.load(trained.workplace.last, weights_only=True)), file)
    return str(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(*each, id=name, marks=[pytest.mark.slow] * (place > 1))
        for place, (name, each) in enumerate(NEVER.items())
    ],
)
def test_a_file_that_no_run_wrote_is_refused_by_every_verb(trained, workplace, door, change, says):
    file = changed(trained, workplace, change)
    for verb in ("fit", "validate", "test", "predict"):
        assert re.search(says, the_line(door(workplace.command(verb, workplace.with_dev(), f"--ckpt_path={file}"))))
    if "state_dict" in says:  # the weights of others are as good as any
        refused = the_line(door(["export", file, str(workplace.folder / "exported"), f"--policy={workplace.policy}"]))
        assert re.search(says, refused)
    assert {each.name for each in workplace.folder.iterdir()} == {"train.jsonl", "dev.jsonl", "given.ckpt"}


@pytest.mark.parametrize(("change", "says"), [*NOT_TO_GO_ON.values(), *LATER.values()], ids=[*NOT_TO_GO_ON, *LATER])
def test_a_checkpoint_that_lacks_a_part_is_not_gone_on_with(trained, workplace, door, change, says):
    file = changed(trained, workplace, change)
    ended = door(workplace.command("fit", f"--ckpt_path={file}"))
    assert ended.code == 2 and re.search(says, ended.error)
    assert not list(workplace.run_dir.glob("*"))


def test_weights_alone_are_enough_to_validate(trained, workplace, door):
    file = changed(trained, workplace, NOT_TO_GO_ON["weights alone"][0])
    assert door(workplace.command("validate", workplace.with_dev(), f"--ckpt_path={file}")).code == 0


OTHERS = {
    "another optimiser": (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
        "exp_avg, .* SGD .* nothing",
    ),
    "more memory": (["--model.optimizer.amsgrad=true"], "AdamW .*keeps exp_avg, exp_avg_sq, max_exp_avg_sq, step"),
    "a schedule": (
        ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=3"],
        "has no schedule of the learning rate, and this run has one",
    ),
}


@pytest.mark.parametrize(("flags", "says"), OTHERS.values(), ids=OTHERS)
def test_a_run_of_another_optimiser_is_not_gone_on_with(trained, workplace, door, flags, says):
    ended = door(workplace.command("fit", *flags, f"--ckpt_path={trained.workplace.last}"))
    assert ended.code == 2 and re.search(says, ended.error)
    assert not list(workplace.run_dir.glob("*"))


def test_a_folder_is_no_checkpoint(trained, workplace, door):
    folder = trained.workplace.last.parent
    assert f"no checkpoint at '{folder}'" in the_line(door(workplace.command("fit", f"--ckpt_path={folder}")))


def test_a_refused_plan_names_the_settings_that_differ_and_leaves_the_runs_own(workplace, door):
    cli.run(workplace.command("fit", "--trainer.max_steps=1", "--data.curriculum=LengthOrder"))
    config = workplace.run_dir / "config.yaml"
    before = config.read_text()
    on = ["--ckpt_path=last", "--trainer.max_steps=2"]
    other = [
        "--data.batch_size=3",
        "--data.curriculum=LabelOrder",
        "--data.filtering=LengthFilter",
        workplace.with_dev(),
    ]
    said = door(workplace.command("fit", *on, *other)).error
    assert "data.batch_size was 2 and is 3, " in said and "data.curriculum was LengthOrder and is LabelOrder" in said
    assert "data.filtering was null and is LengthFilter" in said and "data.val" not in said
    assert f"give those of {config}, or start a new run" in said
    assert config.read_text() == before
    nested = ["--data.curriculum=LengthOrder", "--data.shuffle_seed=5"]
    assert ": data.shuffle_seed was 0 and is 5; give" in door(workplace.command("fit", *on, *nested)).error
    optimizer = door(workplace.command("fit", *on, "--data.curriculum=LengthOrder", "--model.optimizer.amsgrad=true"))
    assert optimizer.code == 2 and config.read_text() == before
    write_prompts(workplace.train, [record(i) for i in range(11)])
    said = door(workplace.command("fit", *on, "--data.curriculum=LengthOrder")).error
    assert f"no setting of data differs from {config}, so what a file holds does: data.train" in said
    assert config.read_text() == before
