"""Shipped configs: listed with what they are for, and found by name from any folder."""

import re
from pathlib import Path

import pytest

from saerl_lightning import shipped
from saerl_lightning.errors import InputError
from saerl_lightning.verbs.configs import listing

CONFIGS = Path(__file__).parent.parent / "configs"
EVERY = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def test_all_are_listed_and_the_baseline_comes_first():
    assert shipped.folder() == CONFIGS
    assert sorted(shipped.names()) == EVERY and shipped.names()[0] == "grpo.yaml"


@pytest.mark.parametrize("name", EVERY)
def test_each_begins_with_a_comment_that_says_what_it_is(name):
    assert (CONFIGS / name).read_text().startswith("# ")
    assert 10 < len(shipped.comment(name)) < 200


def test_a_comment_is_its_first_sentence_over_all_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path)
    (tmp_path / "a.yaml").write_text("# One thing, as in 0.5,\n# on two lines. Another.\n# Third.\ntrainer: {}  # no\n")
    (tmp_path / "b.yaml").write_text("# No full stop\nmodel: {}\n# later. on\n")
    assert shipped.comment("a.yaml") == "One thing, as in 0.5, on two lines."
    assert shipped.comment("b.yaml") == "No full stop"
    wide, narrow = listing(["a.yaml", "b.yaml"], 200), listing(["a.yaml", "b.yaml"], 40)
    assert wide.splitlines()[:2] == ["a.yaml  One thing, as in 0.5, on two lines.", "b.yaml  No full stop"]
    assert re.match(r"a\.yaml  One thing, as in 0\.5, on two\n {8}lines\.\n", narrow)


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("grpo.yaml", "grpo.yaml"),
        ("configs/grpo.yaml", "grpo.yaml"),
        ("model/smollm2_135m.yaml", "model/smollm2_135m.yaml"),
        ("./saerl.yaml", "saerl.yaml"),
    ],
)
@pytest.mark.parametrize("form", ["-c {}", "--config {}", "--config={}", "-c={}"])
def test_a_name_is_found_from_any_folder(tmp_path, monkeypatch, capsys, given, file, form):
    monkeypatch.chdir(tmp_path)
    words = ["fit", *form.format(given).split(), "--data.train", "grpo.yaml"]
    placed = ["fit", *form.format(CONFIGS / file).split(), "--data.train", "grpo.yaml"]
    assert shipped.at_their_places(words) == placed
    assert not capsys.readouterr().err


def test_the_file_here_wins_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("grpo.yaml").write_text("trainer: {max_steps: 1}\n")
    assert shipped.at_their_places(["-c", "grpo.yaml"]) == ["-c", "grpo.yaml"]
    said = capsys.readouterr().err
    assert said == f"'grpo.yaml' is taken from here ({tmp_path / 'grpo.yaml'}), not from the shipped configs\n"
    monkeypatch.chdir(CONFIGS.parent)  # in a checkout both are one file
    assert shipped.at_their_places(["-c", "configs/grpo.yaml"]) == ["-c", "configs/grpo.yaml"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("given", ["../grpo.yaml", "/grpo.yaml", "mine.txt", "{trainer: 3}", "", "configs", "-c"])
def test_what_names_no_shipped_config_is_left_to_the_parser(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    if given != "../grpo.yaml":
        assert shipped.at_their_places(["-c", given]) == ["-c", given]
    assert shipped.find(given) == given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("grop.yaml", "did you mean 'grpo.yaml'"),
        ("configs/grop.yaml", "did you mean 'grpo.yaml'"),
        ("smollm2_135m.yaml", "did you mean 'sae/smollm2_135m.yaml' or 'model/smollm2_135m.yaml'"),
        ("xyzzy.yaml", " configs lists those that are"),
        ("nowhere.yaml", " configs lists those that are"),  # only its end is like that of saerl.yaml
        ("../grpo.yaml", "none is shipped under that name"),
    ],
)
def test_a_name_of_no_shipped_config_is_refused_with_the_nearest(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(says)):
        shipped.at_their_places(["-c", given])
