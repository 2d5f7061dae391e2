"""Places that can't be written to, and a study's record that is torn: one line each, exit code 2."""

import errno
import os

import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.tools.study_folder import check_digests, read_about


@pytest.mark.parametrize(
    "place",
    ["file/run", "loop/run", "n" * 300, "/proc/run"],
    ids=["below a file", "a circle of links", "too long", "not made by mkdir"],
)
def test_a_run_folder_that_cannot_be_is_one_line(workplace, door, place):
    (workplace.folder / "file").write_text("mine")
    (workplace.folder / "loop").symlink_to(workplace.folder / "loop")
    ended = door(workplace.command("fit", f"--run_dir={workplace.folder / place}"))
    assert ended.code == 2 and "can't be used" in ended.error and "--run_dir" in ended.error
    assert (workplace.folder / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_a_file_system_refuses_is_one_line(monkeypatch, door, number):
    def refuse(*args, **more):
        raise OSError(number, os.strerror(number), "/there/run")

    monkeypatch.setattr(cli, "run", refuse)
    said = door(["fit"]).error
    assert said.startswith(f"'/there/run' can't be used: {os.strerror(number)}; name another place")


@pytest.mark.parametrize("text", ["", '{"name": "s", "ar', "[]", "{}", '{"name": 3, "arms": {}}', "[" * 100_000])
def test_a_torn_record_of_a_study_is_one_line(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    for read in (lambda: read_about(tmp_path), lambda: check_digests({"a": "x"}, tmp_path)):
        with pytest.raises(InputError, match=r"study.json' is torn or no study's; delete it"):
            read()
