"""The run folder: an older run goes only for a new one that has a checkpoint, wherever the process is killed."""

import os
import shutil
from pathlib import Path

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.run_folder import LOCK, MARK, RunFolder

KILLED = 9


def older_run(path: Path) -> RunFolder:
    """A run that trained, with files and a folder."""
    folder = RunFolder(path)
    with folder.claimed(overwrite=False, checkpoint=None, last=False):
        folder.mark()
        (path / "checkpoints").mkdir()
        (path / "checkpoints/last.ckpt").write_text("old weights")
        (path / "config.yaml").write_text("run_dir: here\n")
        (path / "csv").mkdir()
        (path / "csv/metrics.csv").write_text("old metrics")
    return folder


def content(path: Path) -> dict[str, str]:
    return {
        str(each.relative_to(path)): each.read_text()
        for each in sorted(path.rglob("*"))
        if each.is_file() and not each.name.startswith(LOCK)
    }


def new_run(folder: RunFolder, checkpoint: bool) -> None:
    with folder.claimed(overwrite=True, checkpoint=None, last=False):
        folder.mark()
        (folder.path / "config.yaml").write_text("run_dir: new\n")
        (folder.path / "csv").mkdir()
        if checkpoint:
            (folder.path / "checkpoints").mkdir()
            (folder.path / "checkpoints/last.ckpt").write_text("new weights")
            folder.release_older()
        os._exit(KILLED)


def killed(task, at: int) -> int:
    """Forks a process that does something and is killed as it renames for the nth time, or in the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        renames, rename = [], Path.rename

        def counted(self: Path, target: Path) -> Path:
            renames.append(self)
            if len(renames) > at:
                os._exit(KILLED + 1)
            return rename(self, target)

        Path.rename = counted
        task()
    finally:
        os._exit(1)


def test_wherever_it_is_killed_the_older_run_is_restored(tmp_path, capfd):
    """A kill at each of the six renames of moving aside and, after it, of putting back; and one in training."""
    before = content(older_run(tmp_path / "run").path)
    assert set(before) == {MARK, "checkpoints/last.ckpt", "config.yaml", "csv/metrics.csv"}
    ends = []
    for at in range(12):
        path = tmp_path / f"run-{at}"
        shutil.copytree(tmp_path / "run", path)
        folder = RunFolder(path)
        ends.append(killed(lambda folder=folder: new_run(folder, checkpoint=False), at))
        if at % 2:  # and killed again as it is put back
            killed(lambda folder=folder: folder.claimed(False, None, True).__enter__(), at // 2)
        with folder.claimed(overwrite=False, checkpoint=None, last=True):
            assert content(path) == before, at
        assert content(path) == before
    assert ends == [KILLED + 1] * 5 + [KILLED] * 7  # four entries and the folder they went to
    assert "holds its older run again" in capfd.readouterr().err


def test_the_older_run_goes_with_the_new_ones_first_checkpoint(tmp_path):
    folder = older_run(tmp_path / "run")
    assert killed(lambda: new_run(folder, checkpoint=True), 100) == KILLED
    with folder.claimed(overwrite=False, checkpoint=None, last=True):
        pass
    found = content(folder.path)
    assert found["checkpoints/last.ckpt"] == "new weights" and "csv/metrics.csv" not in found


@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyboardInterrupt, OSError])
def test_a_run_that_fails_before_its_first_checkpoint_puts_the_older_one_back(tmp_path, error):
    folder = older_run(tmp_path / "run")
    before = content(folder.path)
    with pytest.raises(error), folder.claimed(overwrite=True, checkpoint=None, last=False):
        assert content(folder.path).keys() & before.keys() == {MARK}
        folder.mark()
        (folder.path / "config.yaml").write_text("run_dir: new\n")
        raise error
    assert content(folder.path) == before


@pytest.mark.parametrize("error", [InputError, RuntimeError, SystemExit])
def test_a_crash_in_planning_leaves_nothing_that_blocks_the_next_try(tmp_path, error):
    folder = RunFolder(tmp_path / "runs" / "run")
    with pytest.raises(error), folder.claimed(overwrite=False, checkpoint=None, last=False):
        (folder.path / "config.yaml").write_text("run_dir: new\n")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_planning_does_not_block_the_next_try_but_a_run_that_trained_does(tmp_path):
    folder = RunFolder(tmp_path / "run")

    def plans() -> None:
        with folder.claimed(overwrite=False, checkpoint=None, last=False):
            (folder.path / "config.yaml").write_text("run_dir: new\n")
            os._exit(KILLED)

    killed(plans, 100)
    assert (folder.path / "config.yaml").exists()
    with pytest.raises(RuntimeError), folder.claimed(overwrite=False, checkpoint=None, last=False):
        assert set(content(folder.path)) == {MARK}
        folder.mark()
        raise RuntimeError("in the first step")
    with pytest.raises(InputError, match="exists; write --ckpt_path last"):
        folder.claimed(overwrite=False, checkpoint=None, last=False).__enter__()


def test_what_is_no_run_of_ours_is_never_deleted(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text("run_dir: runs\n")  # of somebody's launcher
    older_run(home / "run")
    (tmp_path / "link").symlink_to(home / "run")
    monkeypatch.chdir(home / "run" / "csv")
    before = content(tmp_path)
    for path, says in {
        home: "holds no .saerl-run, so it is no run folder",
        Path(".."): "the folder you are in, or above it",
        home / "run": "the folder you are in, or above it",
        tmp_path / "link": "is a link to",
    }.items():
        with pytest.raises(InputError, match=says):
            RunFolder(path).claimed(overwrite=True, checkpoint=None, last=False).__enter__()
        assert content(tmp_path) == before


def test_a_checkpoint_is_gone_on_with_in_its_own_folder_or_a_new_one(tmp_path):
    one, other = older_run(tmp_path / "a"), older_run(tmp_path / "b")
    checkpoint = one.path / "checkpoints/last.ckpt"
    before = content(tmp_path)
    with one.claimed(overwrite=True, checkpoint=checkpoint, last=False):  # as its config.yaml may say
        assert content(tmp_path) == before
    with pytest.raises(InputError, match=r"not the run of the checkpoint '.*/a/checkpoints/last.ckpt'"):
        other.claimed(overwrite=False, checkpoint=checkpoint, last=False).__enter__()
    assert content(tmp_path) == before
    with RunFolder(tmp_path / "c").claimed(overwrite=False, checkpoint=checkpoint, last=False):
        pass


def test_ckpt_path_last_begins_in_an_empty_folder_and_refuses_one_that_is_no_run(tmp_path):
    with RunFolder(tmp_path / "new").claimed(overwrite=False, checkpoint=None, last=True):
        pass
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no run to go on with \(thesis.tex is there"):
        RunFolder(tmp_path / "home").claimed(overwrite=False, checkpoint=None, last=True).__enter__()


def test_two_processes_are_not_let_into_one_folder(tmp_path):
    folder = older_run(tmp_path / "run")
    with folder.claimed(overwrite=False, checkpoint=None, last=True):
        for overwrite, last in ((True, False), (False, True), (False, False)):
            with pytest.raises(InputError, match=rf"run folder '.*' is in use by process {os.getpid()} on "):
                folder.claimed(overwrite, None, last).__enter__()
        with pytest.raises(InputError, match="in use by process"):
            folder.begin_anew()
