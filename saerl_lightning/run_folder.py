"""The run folder: where a run writes, what protects an older run from it, and what a run that failed leaves behind.

A run marks its folder, in steps: it is set up, it trains. An older run that is to be replaced is moved aside inside the
folder, and goes only when the new one has a checkpoint or has ended; a new run that fails before puts it back, and where
that one was killed, the next run does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saerl_lightning import lock
from saerl_lightning.errors import InputError
from saerl_lightning.files import disk_is_full, write_whole

MARK = ".saerl-run"  # of a folder that a run of ours made; it says how far the run came
SETTING_UP, TRAINING = "setting up\n", "training\n"
LOCK = ".lock"
OLDER, MOVING = ".older-run", ".older-run-moving"  # what is moved aside: all of it, some of it


def require_place(path: str) -> None:
    """Refuses what no run folder can be called, or what was not meant.

    Raises:
        InputError: for a name of blanks, one that a shell should have expanded, or one that no file system takes.
    """
    if not path.strip() or path != path.strip():
        raise InputError(f"run_dir is {path[:120]!r}; write a folder without blanks at its ends, e.g. runs/first")
    if path.startswith("~"):
        raise InputError(
            f"run_dir is {path[:120]!r}, and no shell has put your home in place of '~'; write the whole path"
        )
    if not path.isprintable():
        raise InputError(f"run_dir is {path[:120]!r}; write a name of letters that can be seen, e.g. runs/first")


class RunFolder:
    """A run's folder.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- the life of a run ---------------------------------------------------------------------------------------------

    @contextmanager
    def claimed(self, overwrite: bool, checkpoint: Path | None, last: bool) -> Iterator[None]:
        """Holds the folder while a run trains in it.

        Args:
            overwrite: replace an older run that is there.
            checkpoint: file that the run goes on from; None for a new run.
            last: the user said `--ckpt_path last`: go on with the run that is there, if there is one.

        Raises:
            InputError: if another process trains there, or the folder holds what the run would write over.
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
        """Empties the folder, or makes it, and marks it as a run's.

        Raises:
            InputError: if a process trains there.
        """
        with lock.held(self.path / LOCK, f"run folder '{self.path}'"):
            _delete([each for each in self.path.iterdir() if not each.name.startswith(LOCK)])
            self.mark()

    def mark(self, state: str = TRAINING) -> None:
        """Says that the folder is a run's, and how far it came."""
        if self._state() != state:
            write_whole(self.path / MARK, state)

    def release_older(self) -> None:
        """Deletes the older run that was moved aside, if there is one."""
        shutil.rmtree(self.path / OLDER, ignore_errors=True)

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def holds_run(self) -> bool:
        """Whether a run of ours is there."""
        return (self.path / MARK).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether a run that is there has got so far that it can be gone on with."""
        return any((self.path / "checkpoints").glob("*.ckpt"))

    def _state(self) -> str:
        return (self.path / MARK).read_text() if self.holds_run else ""

    def _entries(self) -> list[Path]:
        """Everything but locks and what was moved aside."""
        apart = (LOCK, OLDER, MOVING)
        return [each for each in self.path.iterdir() if not each.name.startswith(apart)]

    # -- claiming ------------------------------------------------------------------------------------------------------

    def _admit(self, overwrite: bool, checkpoint: Path | None, last: bool) -> bool:
        """Makes room for the run, or refuses; says whether it is a new one in an empty folder."""
        entries = self._entries()
        if not entries or (self._state() == SETTING_UP and not last):  # whoever set up there never trained
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
        if not self.holds_run:  # a slip of the finger must not delete somebody's home
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
        """Moves the run that is there aside; killed in the middle, it is put back by the next run."""
        entries, moving = self._entries(), self.path / MOVING
        moving.mkdir()
        try:
            for entry in entries:
                entry.rename(moving / entry.name)
        except OSError as error:  # a mounted folder, say
            self._put_back()
            raise InputError(
                f"the run in '{self.path}' can't be moved aside ({error}); name another --run_dir"
            ) from error
        moving.rename(self.path / OLDER)

    def _put_back(self) -> None:
        """Puts what was moved aside back, in place of what was written since."""
        moving = self.path / MOVING
        if (self.path / OLDER).is_dir():
            _delete(self._entries())
            (self.path / OLDER).rename(moving)
        for entry in moving.iterdir():
            entry.rename(self.path / entry.name)
        moving.rmdir()

    def _settle(self) -> None:
        """Ends what a killed run left half done."""
        if (self.path / OLDER).is_dir() and self.has_checkpoint:
            self.release_older()
        if (self.path / OLDER).is_dir() or (self.path / MOVING).is_dir():
            self._put_back()
            print(
                f"'{self.path}' holds its older run again: the one that was to replace it ended before its first checkpoint",
                file=sys.stderr,
            )

    def _undo(self, fresh: bool, error: BaseException) -> None:
        """Leaves the folder as it was, if the run in it has come to nothing that can be gone on with."""
        asked = isinstance(error, InputError) or not isinstance(error, Exception) or disk_is_full(error)
        if not fresh or self.has_checkpoint:
            self.release_older()
        elif (self.path / OLDER).is_dir():
            self._put_back()
        elif asked or self._state() == SETTING_UP:  # else its logs may tell what went wrong
            _delete(self._entries())


def _delete(entries: list[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
