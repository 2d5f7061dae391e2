"""`study publish` and `study tables` on a command line: refusals are one line, and what is written is named."""

import pytest

from tests.study.synthetic_study import Arm, write_study

REFUSED = {
    "no study": (["publish", "nowhere", "to"], "'nowhere' holds no study.yaml"),
    "unfinished": (["publish", "begun", "to"], "UNFINISHED: 1 of 2 runs have finished"),
    "a page in the place": (["publish", "begun", "page.md", "--unfinished=true"], "'page.md' is a file"),
    "below a file": (["publish", "begun", "page.md/to", "--unfinished=true"], "can't be used"),
    "the study's own folder": (["tables", "begun"], "'begun' holds no runs.csv; name a folder that"),
    "no page": (["tables", "published", "--page=none.md"], "--page 'none.md' can't be read"),
    "no marks": (
        ["tables", "published", "--page=page.md"],
        "--page 'page.md' needs the lines <!-- tables published -->",
    ),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, door):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "begun", {"grpo": Arm([[0.1, 0.2]]), "saerl": Arm([None])}, ["saerl"])
    (tmp_path / "page.md").write_text("mine")
    assert door(["study", "publish", "begun", "published", "--unfinished=true"]).code == 0
    return tmp_path


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_line_and_writes_nothing(place, door, words, says):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    ended = door(["study", *words])
    assert ended.code == 2 and says in ended.error and len(ended.error.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_tables_go_where_they_were_asked_for(place, door, capsys):
    (place / "page.md").write_text("<!-- tables published -->\n<!-- /tables published -->\n")
    assert door(["study", "tables", "published", "--page=page.md"]).code == 0
    assert "**UNFINISHED: 1 of 2 runs have finished (1 not started)." in (place / "page.md").read_text()


@pytest.mark.parametrize("words", [["publish", "begun", "to", "--unfinished=true"], ["report", "begun"]])
@pytest.mark.parametrize("name", ["study.json", "shared/stages.json"])
def test_a_torn_file_of_the_study_is_one_line(place, door, words, name):
    (place / "begun" / name).write_text('{"name": "beg')
    ended = door(["study", *words])
    assert ended.code == 2 and f"begun/{name}' is torn" in ended.error and len(ended.error.strip().splitlines()) == 1
    assert not (place / "to").exists() and not (place / "begun/report").exists()
