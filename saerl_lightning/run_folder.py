"""The run folder: where a run writes its files, how it is locked, and how an older run in it is protected.

A mark in the folder records the state of its run: setting up, or training. An older run that will be replaced is first
moved into a subfolder, and is deleted once the new run has a checkpoint or has ended. If the new run fails earlier, the
older run is moved back; if the new run was killed, the next run moves it back.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.files import disk_is_full, write_whole

MARK = ".saerl-run"  # file that marks a folder as a run's; it holds the run's state
SETTING_UP, TRAINING = "setting up\n", "training\n"
LOCK = ".lock"
LAST = ("last", "hpc")  # values of --ckpt_path that resume the run in the folder
OLDER, MOVING = ".older-run", ".older-run-moving"  # the older run: moved completely, or partly


def require_place(path: str) -> None:
    """Refuses a path that can't be a run folder, or is probably a mistake.

    Raises:
        InputError: for blanks at the ends, an unexpanded '~', or characters that can't be printed.
    """
    if not path and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes were started one by one, and each would choose a folder of its own; "
            "write --run_dir with one folder for all"
        )
    if not path.strip() or path != path.strip():
        raise InputError(f"run_dir is {path[:120]!r}; write a folder without blanks at its ends, e.g. runs/first")
    if path.startswith("~"):
        raise InputError(
            f"run_dir is {path[:120]!r}, and no shell has put your home in place of '~'; write the whole path"
        )
    if not path.isprintable():
        raise InputError(f"run_dir is {path[:120]!r}; write a name of letters that can be seen, e.g. runs/first")


def named_by_time() -> str:
    """Returns a new run folder's path, which is the same for all processes of the run; "" if they can't agree on one.

    It is named by the time, and under SLURM by the job. Processes that Lightning starts inherit it; with
    `torchrun`, the first one tells the others.
    """
    now, environ = f"runs/{datetime.now():%Y%m%d-%H%M%S}", os.environ
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ:
        return f"runs/job-{environ.get('SLURM_JOB_ID', '')}"
    if int(environ.get("WORLD_SIZE", "1")) > 1 and "SAERL_RUN_DIR" not in environ:
        return _of_first_process(now) if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else ""
    if "LOCAL_RANK" not in environ:
        environ["SAERL_RUN_DIR"] = now
    return environ.get("SAERL_RUN_DIR", now)


def _of_first_process(name: str) -> str:
    """The name that the first process has, through the store of torchrun's agent."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(place, port, is_master=False, timeout=timedelta(minutes=5))
    key = f"saerl/run_dir/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if os.environ["RANK"] == "0":
        store.set(key, name)
    return store.get(key).decode()


def checkpoint_file(given: str | None, run_dir: str, fitting: bool) -> Path | None:
    """File that a run starts from, if it is on this machine.

    Args:
        given: Value of `--ckpt_path`.
        run_dir: Folder of the run.
        fitting: Whether the run trains; with `last` there is no file yet at the first start of a job that restarts itself.
    """
    if given is None or given in ("best", "hpc") or given.startswith("registry") or "://" in given:
        return None
    if given == "last":
        last = Path(run_dir, "checkpoints", "last.ckpt")
        return None if fitting and not last.exists() else last
    return None if Path(given, "checkpoint").exists() else Path(given)


class RunFolder:
    """The folder of one run.

    Args:
        path: Path of the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- start and end of a run ----------------------------------------------------------------------------------------

    @contextmanager
    def claimed(self, overwrite: bool, checkpoint: Path | None, last: bool) -> Iterator[None]:
        """Holds the folder during the block, while a run trains in it.

        Args:
            overwrite: Whether to replace an older run in the folder.
            checkpoint: Checkpoint file to resume from; None for a new run.
            last: Whether the user wrote `--ckpt_path last`, which resumes the run in the folder if there is one.

        Raises:
            InputError: if another process trains there, or the run would overwrite other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"'{self.path}' is a file; name another --run_dir")
        with lock.held(self.path / LOCK, f"run folder '{self.path}'"):
            self._settle()
            fresh = self._admit(overwrite, checkpoint, last)
            if fresh:
                self.mark(SETTING_UP)
            try:
                yield
            except BaseException as error:
                self._undo(fresh, error)
                raise
            self.release_older()

    def begin_anew(self) -> None:
        """Empties the folder (or makes it), and marks it as a run's.

        Raises:
            InputError: if another process trains there.
        """
        with lock.held(self.path / LOCK, f"run folder '{self.path}'"):
            _delete([each for each in self.path.iterdir() if not each.name.startswith(LOCK)])
            self.mark()

    def mark(self, state: str = TRAINING) -> None:
        """Marks the folder as a run's, with the run's state."""
        if self._state() != state:
            write_whole(self.path / MARK, state)

    def release_older(self) -> None:
        """Deletes the older run that was moved aside, if any."""
        shutil.rmtree(self.path / OLDER, ignore_errors=True)

    # -- content -------------------------------------------------------------------------------------------------------

    @property
    def holds_run(self) -> bool:
        """Whether the folder belongs to a run."""
        return (self.path / MARK).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run in the folder has a checkpoint to resume from."""
        return any((self.path / "checkpoints").glob("*.ckpt"))

    def _state(self) -> str:
        return (self.path / MARK).read_text() if self.holds_run else ""

    def _entries(self) -> list[Path]:
        """Returns all entries but locks and an older run that was moved aside."""
        apart = (LOCK, OLDER, MOVING)
        return [each for each in self.path.iterdir() if not each.name.startswith(apart)]

    # -- checks before a run -------------------------------------------------------------------------------------------

    def _admit(self, overwrite: bool, checkpoint: Path | None, last: bool) -> bool:
        """Makes room for the run, or refuses. Returns whether the folder is now empty for a new run."""
        entries = self._entries()
        # A run that was only setting up has trained nothing, so its files can be deleted.
        if not entries or (self._state() == SETTING_UP and not last):
            _delete(entries)
            return True
        here = checkpoint is not None and self.path.resolve() in checkpoint.resolve().parents
        if here or (last and self.holds_run):
            return False
        if last:
            raise InputError(
                f"'{self.path}' holds no run to go on with ({entries[0].name} is there, checkpoints/last.ckpt is not); name "
                "the run's folder by --run_dir, or an empty one to begin anew"
            )
        if not overwrite:
            raise InputError(self._occupied(checkpoint))
        self._require_deletable()
        self._move_aside()
        return True

    def _occupied(self, checkpoint: Path | None) -> str:
        if checkpoint is None:
            return (
                f"run folder '{self.path}' exists; write --ckpt_path last to go on with that run, --overwrite true to "
                "delete it, or another --run_dir"
            )
        return (
            f"run folder '{self.path}' exists and is not the run of the checkpoint '{checkpoint}'; write the --run_dir of "
            "that run to go on there, a new --run_dir, or --overwrite true to delete what is here"
        )

    def _require_deletable(self) -> None:
        # Without the mark, the folder may be anything, even a home directory: never delete it.
        if not self.holds_run:
            raise InputError(
                f"'{self.path}' holds no {MARK}, so it is no run folder and is not deleted; name another --run_dir"
            )
        if self.path.is_symlink():
            raise InputError(
                f"'{self.path}' is a link to '{self.path.resolve()}' and is not deleted; name the folder itself"
            )
        if self.path.resolve() in (here := Path.cwd(), *here.parents):
            raise InputError(f"'{self.path}' is the folder you are in, or above it, and is not deleted; name another")

    # -- the older run -------------------------------------------------------------------------------------------------

    def _move_aside(self) -> None:
        """Moves the run in the folder aside. If the process is killed meanwhile, the next run moves it back."""
        entries, moving = self._entries(), self.path / MOVING
        moving.mkdir()
        try:
            for entry in entries:
                entry.rename(moving / entry.name)
        except OSError as error:  # for example, an entry is a mounted folder
            self._put_back()
            raise InputError(
                f"the run in '{self.path}' can't be moved aside ({error}); name another --run_dir"
            ) from error
        moving.rename(self.path / OLDER)

    def _put_back(self) -> None:
        """Moves the older run back, and deletes what was written since."""
        moving = self.path / MOVING
        if (self.path / OLDER).is_dir():
            _delete(self._entries())
            (self.path / OLDER).rename(moving)
        for entry in moving.iterdir():
            entry.rename(self.path / entry.name)
        moving.rmdir()

    def _settle(self) -> None:
        """Completes what a killed run left unfinished: deletes the older run, or moves it back."""
        if (self.path / OLDER).is_dir() and self.has_checkpoint:
            self.release_older()
        if (self.path / OLDER).is_dir() or (self.path / MOVING).is_dir():
            self._put_back()
            print(
                f"'{self.path}' holds its older run again: the one that was to replace it ended before its first checkpoint",
                file=sys.stderr,
            )

    def _undo(self, fresh: bool, error: BaseException) -> None:
        """Restores the folder after a failed run, unless the run has a checkpoint to resume from."""
        # After a refusal, Ctrl-C or a full disk, the files are of no use. After any other error, the logs may show the
        # cause.
        asked = isinstance(error, InputError) or not isinstance(error, Exception) or disk_is_full(error)
        if not fresh or self.has_checkpoint:
            self.release_older()
        elif (self.path / OLDER).is_dir():
            self._put_back()
        elif asked or self._state() == SETTING_UP:
            _end_wandb()
            _delete(self._entries())


def _end_wandb() -> None:
    """Ends a run of W&B, whose own process would write into the folder again after its files were deleted."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=1)


def _delete(entries: list[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
