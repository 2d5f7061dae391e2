"""The README is short, and its map and the page of the tree are those of the package."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_it_counts_test_functions(hooks):
    """By a search for their first lines, which the hook does not make; rounded down to fifty."""
    texts = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    count = sum(len(re.findall(r"^ *def test_\w+\(", text, re.MULTILINE)) for text in texts)
    assert f"the suite ({count // 50 * 50:,} test functions and more)" in README, "run `make tree`"
    assert hooks.with_count(README) == README


def test_the_tree_is_the_real_one(hooks):
    assert hooks.tree(ROOT / "saerl_lightning") in (ROOT / "docs" / "tree.md").read_text(), "run `make tree`"


def test_the_stops_of_the_walk_are_where_they_are_said_to_be():
    page = (ROOT / "docs" / "walk.md").read_text()
    stops = re.findall(r"^\| \d+ \| `([\w/]+\.py)` `([\w.]+)` \| (\d+)–(\d+) \|", page, re.MULTILINE)
    assert len(stops) == len(re.findall(r"^\| \d+ \|", page, re.MULTILINE)) > 20
    for file, name, first, last in stops:
        lines = (ROOT / "saerl_lightning" / file).read_text().splitlines()
        own = name.rpartition(".")[2]
        assert re.match(rf"\s*(?:def|class) {own}\b", lines[int(first) - 1]), f"run `make tree`: {file} {name}"
        indent = len(lines[int(first) - 1]) - len(lines[int(first) - 1].lstrip())
        after = next((line for line in lines[int(last) :] if line.strip()), "")
        assert len(after) - len(after.lstrip()) <= indent, f"run `make tree`: {file} {name}"


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 130


def test_the_readmes_map_leads_to_every_folder():
    rows = re.findall(r"^\| (`[^|]*) \|", README.partition("## The map")[2], re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    found = {
        (ROOT / place).resolve()
        for path in paths
        for place in (path, f"saerl_lightning/{path}")
        if (ROOT / place).exists()
    }
    assert len(found) == len(paths), paths
    rooms = {folder.parent for folder in (ROOT / "saerl_lightning").glob("*/__init__.py")}
    assert {room.name for room in rooms - found} <= {
        "data",
        "training",
        "assets",
    }  # led to by a file of theirs, or made of models


def test_the_site_names_what_a_newcomer_looks_for():
    nav = re.findall(r"^ *- ([^:\n]+): \S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    for word in ("install", "notebook", "evaluate", "cite", "troubleshooting"):
        assert any(word in title.lower() for title in nav), word


def test_pip_is_printed_where_make_is_not_wanted():
    words = README.partition("by pip alone")[2].partition("`make help`")[0]
    assert "pip install torch==2.13.0 ." in words


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the format requires
    assert cited["authors"] == [{"name": "saerl_lightning contributors"}]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert f"version = {{{project['version']}}}" in (ROOT / "docs" / "cite.md").read_text()
