"""What a run says where there is no terminal: its folder, a line now and then, and how to go on."""

import ast
import gc
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.__main__ import main as start
from saerl_lightning.errors import CALLED_AS, program, tool
from saerl_lightning.training import feedback
from tests.cli.test_door import the_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def each_step(monkeypatch):
    """A line for every batch in place of one every 30 seconds."""
    monkeypatch.setattr(feedback, "EVERY_S", 0.0)


def test_a_run_begins_with_its_folder_and_ends_with_commands_that_go_on(workplace, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/main.py"])
    cli.run(workplace.command("fit", workplace.with_dev(), "--trainer.max_steps=2"))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"run folder: {workplace.run_dir}"
    place = next(i for i, line in enumerate(said) if line.startswith("finished: "))
    assert re.fullmatch(rf"finished: 2 steps in \d+ s; run folder {workplace.run_dir}", said[place])
    go_on, validate = (line.strip() for line in said[place + 1 :])
    assert re.match(r"go on: +\S*python\S* -m saerl_lightning fit -c ", go_on)
    assert re.match(r"validate: +\S*python\S* -m saerl_lightning validate -c ", validate)
    cli.run(shlex.split(go_on.partition("saerl_lightning ")[2]))  # as printed
    assert torch.load(workplace.last, weights_only=True)["global_step"] == 4
    cli.run(shlex.split(validate.partition("saerl_lightning ")[2]))


def test_epochs_are_gone_on_with_where_they_ended_the_run(workplace, capsys):
    flags = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    cli.run(workplace.command("fit", *flags))
    said = capsys.readouterr().out
    assert "finished: 2 steps" in said and said.rstrip().endswith("--ckpt_path last --trainer.max_epochs 2")
    assert "validate:" not in said  # there is nothing to validate on


def test_a_run_that_is_refused_says_only_why(workplace, door, capsys):
    the_line(door(workplace.command("fit", "--data.batch_size=0")))
    assert "run folder" not in capsys.readouterr().out


STARTED = {
    "saerl": "saerl",
    "ON_PATH/saerl": "saerl",
    ".venv/bin/saerl": ".venv/bin/saerl",
    "/opt/env/bin/saerl": "/opt/env/bin/saerl",
    "main.py": "env/bin/python main.py",
    "/somewhere/main.py": "env/bin/python -m saerl_lightning",
    "/somewhere/saerl_lightning/__main__.py": "env/bin/python -m saerl_lightning",
}


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """The folder of an environment's programs, below the folder that the command is given in."""
    programs = tmp_path / "env/bin"
    programs.mkdir(parents=True)
    for name in ("python", "saerl", "wandb"):
        (programs / name).touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(programs / "python"))
    return programs


@pytest.mark.parametrize(("started", "said"), STARTED.items())
def test_printed_commands_are_started_as_this_one_was(environment, monkeypatch, started, said):
    monkeypatch.setattr("sys.argv", [started.replace("ON_PATH", str(environment))])
    monkeypatch.setenv("PATH", str(environment) if "ON_PATH" in started else "/usr/bin")
    assert program() == said
    monkeypatch.setenv(CALLED_AS, "what the user called")  # as in a run of a study
    assert program() == "what the user called"


def test_programs_beside_python_are_named_as_they_can_be_called(environment, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    assert (tool("wandb"), tool("hf")) == ("env/bin/wandb", "hf")
    monkeypatch.setenv("PATH", f"/usr/bin:{environment}")
    assert tool("wandb") == "wandb"


@pytest.mark.parametrize(
    "tool, about",
    {
        "study": "Runs the arms of a study",
        "export": "Writes the checkpoint",
        "demo": "Trains a tiny",
        "dashboard": "Saves",
    }.items(),
)
def test_a_tools_help_says_what_it_does_and_how_it_was_called(monkeypatch, capsys, tool, about):
    monkeypatch.setattr("sys.argv", ["main.py", tool, "--help"])
    cli.main()
    usage, text = capsys.readouterr().out.split("\n\n")[:2]
    assert re.match(rf"usage: \S*python\S* main.py {tool} ", usage) and text.startswith(about)


def test_no_message_names_a_program_that_an_installed_package_lacks():
    """Only a study's stages may begin with `main.py`, which is not called there."""
    found = []
    for path in sorted((ROOT / "saerl_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ("\n" not in node.value):
                found += [f"{path.name}: {node.value}"] if re.search(r"main\.py .|\.venv/", node.value) else []
    assert found == []


def test_a_step_is_a_line_with_rate_time_left_and_the_numbers_of_the_bar(workplace, capsys, each_step):
    flags = ["--trainer.max_steps=3", "--trainer.val_check_interval=2", workplace.with_dev()]
    cli.run(workplace.command("fit", *flags))
    said = capsys.readouterr().out.splitlines()
    steps = [line for line in said if line.startswith("step ")]
    number = r"[\d.]+(?: s a step| steps/s)"
    assert len(steps) == 3
    for count, (line, share) in enumerate(zip(steps, ("33%", "67%", "100%"), strict=True), 1):
        assert re.fullmatch(rf"step {count} \({share}\), epoch 0, {number}, \d+ s left; .*reward [\d.]+.*", line), line
    assert [line for line in said if line.startswith("validation")] == ["validation: batch 1 of 1"] * 2
    assert not [line for line in said if "\r" in line or "it/s" in line]  # no bar


def test_a_run_without_a_bar_is_silent(workplace, capsys, each_step):
    quiet = ["--trainer.callbacks=[]", "--trainer.enable_progress_bar=false"]
    cli.run(workplace.command("fit", *quiet))
    assert "step 1" not in capsys.readouterr().out


def test_an_sae_in_training_says_so_too(workplace, capsys, each_step):
    sae = Path(__file__).parents[2] / "configs/sae/topk.yaml"
    flags = {
        "run_dir": workplace.run_dir,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 4,
        "trainer.val_check_interval": "null",
        "trainer.log_every_n_steps": 1,
        "model.save_to": workplace.folder / "sae",
        "model.options": json.dumps({"k": 4}),
        "model.expansion": 1,
        "model.warmup_steps": 0,
        "data.model.path": workplace.policy,
        "data.model.layer": 1,
        "data.prompts": workplace.train,
        "data.batch_tokens": 16,
        "data.buffer_tokens": 4096,
        "data.validation_prompts": 2,
    }
    cli.run(["fit", "-c", str(sae), *(f"--{name}={value}" for name, value in flags.items())])
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(steps) == 4 and all("loss" in line and " left; " in line for line in steps)


class Trainer:
    """What `share_done` reads."""

    max_steps, max_epochs, global_step, current_epoch, num_training_batches = -1, -1, 6, 1, 8
    callbacks = ()


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.0),  # nothing ends it
        ({"max_steps": 24}, 0.25),
        ({"max_epochs": 4}, (1 + 2 / 8) / 4),
        ({"max_epochs": 4, "max_steps": 12}, 0.5),  # whichever comes first
        ({"max_epochs": 4, "num_training_batches": float("inf")}, 0.0),
        ({"max_steps": 3}, 1.0),
    ],
)
def test_the_limit_that_comes_first_tells_the_share(settings, share):
    trainer = Trainer()
    vars(trainer).update(settings)
    assert feedback.share_done(trainer, 2) == pytest.approx(share)


def test_a_token_budget_is_a_limit_too():
    from saerl_lightning.training.callbacks import TokenBudget

    budget, trainer = TokenBudget(tokens=1000), Trainer()
    budget.generated, trainer.callbacks = 400, [budget]
    assert feedback.share_done(trainer, 0) == pytest.approx(0.4)


def test_garbage_is_collected_again_once_everything_is_imported(monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["saerl", "fit"])
    monkeypatch.setattr(
        "saerl_lightning.cli.main", lambda: seen.append((gc.isenabled(), gc.get_freeze_count() > 10_000))
    )
    try:
        start()
    finally:
        gc.unfreeze()
    assert seen == [(True, True)]
