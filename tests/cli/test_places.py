"""Places that can't be written to, and a study's record that is torn: one line each, exit code 2."""

import errno
import os
from pathlib import Path

import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.study.folder import check_digests, read_about


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


WRITERS = {
    "plan": ("plan", "--out={place}"),
    "label": ("label", "--out={place}", "--prompts=2", "--samples=2"),
    "cached features": (
        "fit", "--data.signals=TextSignals", "--data.clustering=KMeansClusters", "--data.clustering.clusters=2",
        "--data.signal_cache={place}",
    ),
    "a CSV log": ("fit", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir={place}", "--run_dir={place}"),
}  # fmt: skip


@pytest.mark.parametrize("place", ["file/there", "/proc/there"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_where_nothing_can_be_written_is_one_line_for_every_writer(workplace, door, writer, place):
    (workplace.folder / "file").write_text("mine")
    verb, *given = WRITERS[writer]
    ended = door(workplace.command(verb, *(flag.format(place=workplace.folder / place) for flag in given)))
    assert ended.code == 2 and "can't be used" in ended.error
    named = [each for root in (workplace.folder / "file", Path("/proc")) for each in (root, root / "there")]
    assert any(f"'{each}' can't be used" in ended.error for each in named)
    assert len(ended.error.strip().splitlines()[-1]) < 400 and "Traceback" not in ended.error
    assert (workplace.folder / "file").read_text() == "mine"


def test_a_link_to_a_folder_is_a_place_and_a_link_to_nothing_is_none(workplace, door):
    (workplace.folder / "real").mkdir()
    (workplace.folder / "link").symlink_to(workplace.folder / "real")
    (workplace.folder / "nothing").symlink_to(workplace.folder / "nowhere")
    ended = door(workplace.command("fit", f"--run_dir={workplace.folder / 'nothing'}"))
    assert ended.code == 2 and "can't be used" in ended.error and not (workplace.folder / "nowhere").exists()
    assert door(workplace.command("fit", f"--run_dir={workplace.folder / 'link'}", "--trainer.max_steps=1")).code == 0
    assert (workplace.folder / "real" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_a_file_system_refuses_is_one_line(monkeypatch, door, number):
    def refuse(*args, **more):
        raise OSError(number, os.strerror(number), "/there/run")

    monkeypatch.setattr(cli, "_composed", refuse)
    said = door(["fit"]).error
    assert said.startswith(f"'/there/run' can't be used: {os.strerror(number)}; name another place")


@pytest.mark.parametrize("text", ["", '{"name": "s", "ar', "[]", "{}", '{"name": 3, "arms": {}}', "[" * 100_000])
def test_a_torn_record_of_a_study_is_one_line(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    for read in (lambda: read_about(tmp_path), lambda: check_digests({"a": "x"}, tmp_path)):
        with pytest.raises(InputError, match=r"study.json' is torn or no study's; delete it"):
            read()
