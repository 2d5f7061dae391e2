"""`run` from Python: every verb of the command line, mistakes as one kind of exception, and how a stopped run goes on."""

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import wandb

import saerl_lightning as sl
from saerl_lightning.training.callbacks import Stopped
from saerl_lightning.verbs.names import EVERY
from tests.cli.test_nothing_lost import in_step


@pytest.fixture(autouse=True)
def kernel(monkeypatch, tmp_path):
    """The arguments of a notebook's kernel."""
    monkeypatch.setattr(sys, "argv", ["/opt/ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)


def test_a_first_run_is_written_and_trained(capsys):
    assert sl.run(["init", "try"]) is None
    assert "saerl fit -c try/run.yaml" in capsys.readouterr().out
    made = sl.run(["fit", "-c", "try/run.yaml", "--trainer.max_steps=1"])
    assert made.trainer.global_step == 1 and made.model.policy.path.endswith("try/policy")


def test_a_tool_runs_and_returns(capsys):
    sl.run(["init", "try"])
    made = sl.run(["fit", "-c", "try/run.yaml", "--trainer.max_steps=1", "--run_dir=run"])
    sl.run(["export", "run/checkpoints/last.ckpt", "exported", "--policy", made.model.policy.path])
    assert Path("exported/config.json").is_file()


@pytest.mark.parametrize("verb", EVERY)
def test_every_verb_has_its_help_and_goes_on(verb, capsys):
    assert sl.run([verb, "--help"]) is None
    assert re.match(r"usage: \S*saerl ", capsys.readouterr().out)


MISTAKES = {
    "no verb": ([], "no verb is given; write one of fit, .*, init"),
    "a verb": (["fti"], "'fti' is none of fit, .*did you mean 'fit'"),
    "a flag": (["fit", "--trainer.max_stepss=3"], r"did you mean 'trainer.max_steps'.*\(\S*saerl fit --help lists all"),
    "a config": (["fit", "-c", "nowhere.yaml"], "nowhere.yaml"),
    "a value": (["fit", "--trainer.max_steps=many"], r"trainer.max_steps is 'many'.*\(\S*saerl fit --help"),
    "a value of ours": (["fit", "-c", "grpo.yaml", "--seed_everything=-1"], "seed_everything is -1"),
    "a setting of the trainer": (["fit", "-c", "grpo.yaml", "--trainer.accelerator=abacus"], "trainer: .*abacus"),
    "a bar": (
        ["fit", "-c", "grpo.yaml", "--trainer.enable_progress_bar=false"],
        "found `PhaseProgressBar` in callbacks",
    ),
    "a verb of a tool": (["study", "rnu"], r"'rnu' is none of .*\(\S*saerl study --help"),
    "an argument of a tool": (["export", "a", "b", "--overwrit=true"], r"did you mean 'overwrite'.*\(\S*saerl export"),
    "a quick verb's": (["init", "a", "b"], r"'init' has 2 arguments; usage: \S*saerl init DIR"),
}


@pytest.mark.parametrize(("args", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_input_error_of_one_line(args, says, capsys):
    with pytest.raises(sl.InputError, match=says) as raised:
        sl.run(args)
    assert "\n" not in str(raised.value) and "ipykernel" not in str(raised.value)
    assert "error:" not in capsys.readouterr().err  # it is raised, and not printed as well


def test_a_stopped_run_ends_with_how_it_goes_on(workplace, monkeypatch, capsys):
    in_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped) as stopped:
        sl.run(workplace.command("fit"))
    hint = str(stopped.value)
    how = rf"go on with: \S*saerl fit -c {workplace.run_dir}/config.yaml --ckpt_path last"
    assert re.fullmatch(f"SIGINT: stopped at step 2; {how}", hint) and stopped.value.code == 130
    assert capsys.readouterr().err.rstrip().endswith(hint)


@pytest.mark.parametrize(
    ("met", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some of it"),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), "'/there' can't be used: Permission denied"),
        (wandb.errors.CommError("Error uploading run: returned error 401"), "W&B can't be used: Error uploading run"),
    ],
)
def test_what_the_command_line_says_in_a_line_is_one_exception_here(monkeypatch, met, says):
    def fail(args):
        raise met

    monkeypatch.setattr("saerl_lightning.cli.answered", fail)
    with pytest.raises(sl.RunStopped, match=re.escape(says)) as stopped:
        sl.run(["fit"])
    assert stopped.value.__cause__ is met


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr("saerl_lightning.cli.answered", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sl.run(["fit"])
