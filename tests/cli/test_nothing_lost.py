"""At the command line: runs, labels and plans that are there outlive what comes after them, and two at once are refused."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from saerl_lightning import lock
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.errors import program
from saerl_lightning.study.costs import curve, logged_steps
from saerl_lightning.training.policy_module import PolicyModule


def content(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.fixture
def older(trained, workplace) -> Path:
    """The folder of a run that trained."""
    import shutil

    return Path(shutil.copytree(trained.workplace.run_dir, workplace.run_dir))


def crash(*_) -> None:
    raise RuntimeError("a crash in planning")


def test_overwrite_with_a_later_refusal_keeps_the_older_run(older, workplace, door):
    before = content(workplace.folder)
    ended = door(workplace.command("fit", "--overwrite=true", "--data.batch_size=13"))
    assert ended.code == 2 and "only 12" in ended.error
    assert content(workplace.folder) == before


def test_overwrite_with_a_crash_in_planning_keeps_the_older_run(older, workplace, door, monkeypatch):
    before = content(workplace.folder)
    monkeypatch.setattr(PromptDataModule, "set_up_plan", crash)
    with pytest.raises(RuntimeError, match="a crash in planning"):
        door(workplace.command("fit", "--overwrite=true"))
    assert content(workplace.folder) == before


def test_a_crash_in_planning_does_not_block_the_next_try(workplace, door, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash in planning"):
        patch.setattr(PromptDataModule, "set_up_plan", crash)
        door(workplace.command("fit"))
    assert not workplace.run_dir.exists()
    assert door(workplace.command("fit", "--trainer.max_steps=1")).code == 0


def test_somebody_elses_config_that_names_a_run_dir_is_no_run(workplace, door):
    workplace.run_dir.mkdir()
    (workplace.run_dir / "config.yaml").write_text("run_dir: /scratch\n")
    ended = door(workplace.command("fit", "--overwrite=true"))
    assert ended.code == 2 and "is no run folder and is not deleted" in ended.error
    assert (workplace.run_dir / "config.yaml").read_text() == "run_dir: /scratch\n"


def test_the_folder_that_one_is_in_is_not_deleted(older, workplace, door, monkeypatch):
    monkeypatch.chdir(older)
    before = content(older)
    ended = door(workplace.command("fit", "--overwrite=true", "--run_dir=."))
    assert ended.code == 2 and "the folder you are in" in ended.error
    assert content(older) == before


def test_a_checkpoint_is_not_gone_on_with_over_another_run(trained, older, workplace, door):
    before = content(older)
    ended = door(workplace.command("fit", "--trainer.max_steps=6", f"--ckpt_path={trained.workplace.last}"))
    assert ended.code == 2 and "is not the run of the checkpoint" in ended.error
    assert content(older) == before


def test_last_in_a_folder_that_is_no_run_is_refused(workplace, door):
    workplace.run_dir.mkdir()
    (workplace.run_dir / "thesis.tex").write_text("years of work")
    ended = door(workplace.command("fit", "--ckpt_path=last"))
    assert ended.code == 2 and "holds no run to go on with" in ended.error
    assert [each.name for each in workplace.run_dir.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("verb", "flags", "place"),
    [
        ("fit", ["--ckpt_path=last"], "run/.lock"),
        ("label", ["--out={folder}/labels.jsonl", "--prompts=2"], ".labels.jsonl.lock"),
        ("plan", ["--out={folder}/plan"], ".plan.lock"),
    ],
)
def test_two_runs_at_once_are_refused_with_the_holders_process_and_machine(workplace, door, verb, flags, place):
    """Also across machines: a lock file is all that the other process left here."""
    path = workplace.folder / place
    path.parent.mkdir(exist_ok=True)
    with lock.held(path, "the thing"):
        path.write_text(path.read_text().replace(f'"process": {os.getpid()}', '"process": 4242'))
        path.write_text(path.read_text().replace('"host": "', '"host": "gpu-7.'))
        before = content(workplace.folder)
        ended = door(workplace.command(verb, *(flag.format(folder=workplace.folder) for flag in flags)))
        assert ended.code == 2 and "is in use by process 4242 on gpu-7." in ended.error
        assert content(workplace.folder) == before


# -- signals and a full disk -------------------------------------------------------------------------------------------


def in_step(monkeypatch, step: int, does) -> None:
    """Lets something happen in a training step, before its update."""
    descend = PolicyModule.descend

    def then(self, *args):
        if self.global_step + 1 == step:
            does()
        return descend(self, *args)

    monkeypatch.setattr(PolicyModule, "descend", then)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_training_saves_says_how_to_go_on_and_ends_with_its_code(workplace, door, number, code):
    steps = ["--trainer.max_steps=4", workplace.with_dev(), "--trainer.val_check_interval=2"]
    with pytest.MonkeyPatch.context() as patch:
        in_step(patch, 2, lambda: os.kill(os.getpid(), number))
        ended = door(workplace.command("fit", *steps))
    assert ended.code == code
    how = f"fit -c {workplace.run_dir}/config.yaml --ckpt_path last"
    assert f"{number.name}: stopped at step 2; go on with: {program()} {how}" in ended.stderr
    assert door(how.split()).code == 0
    whole = workplace.folder / "whole"
    assert door(workplace.command("fit", *steps, f"--run_dir={whole}")).code == 0
    ends = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (workplace.run_dir, whole)]
    for one, other in zip(*(end["state_dict"].values() for end in ends), strict=True):
        assert torch.equal(one, other)


def test_a_run_killed_in_its_last_validation_makes_that_and_no_step(trained, workplace, door, monkeypatch):
    """Killed outright in the middle of it: its numbers are those of a run that nobody killed."""
    steps = ["--trainer.max_steps=4", workplace.with_dev(), "--trainer.val_check_interval=2"]
    evaluate = PolicyModule._evaluate

    def killed(self, batch, batch_idx, *more):
        evaluate(self, batch, batch_idx, *more)
        if self.global_step == 4:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(PolicyModule, "_evaluate", killed)
        door(workplace.command("fit", *steps))
    name, whole = "val/macro/avg@k", trained.workplace.run_dir
    assert [step for step, _ in curve(workplace.run_dir, name)] == [0, 2]
    taken: list[int] = []
    monkeypatch.setattr(PolicyModule, "descend", lambda *_: taken.append(1))
    assert door(["fit", "-c", f"{workplace.run_dir}/config.yaml", "--ckpt_path", "last"]).code == 0
    assert taken == []
    assert curve(workplace.run_dir, name) == curve(whole, name)
    assert logged_steps(workplace.run_dir).keys() == logged_steps(whole).keys() == {1, 2, 3, 4}


def test_a_full_disk_says_how_to_go_on_and_that_works(workplace, door, monkeypatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        in_step(patch, 2, full)
        ended = door(workplace.command("fit"))  # nothing was saved yet, so nothing is in the way
    assert ended.code == 2 and "the disk is full" in ended.error and "give the same command again" in ended.error
    with monkeypatch.context() as patch:
        in_step(patch, 3, full)
        ended = door(workplace.command("fit", "--checkpoint.every_n_train_steps=1"))
    how = f"fit -c {workplace.run_dir}/config.yaml --ckpt_path last"
    assert ended.code == 2 and f"go on with: {program()} {how}" in ended.error
    assert door(how.split()).code == 0
    assert torch.load(workplace.last, weights_only=True)["global_step"] == 3
