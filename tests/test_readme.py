"""The README is short, and its map and the page of the tree are those of the package."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tree_is_the_real_one():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.tree(ROOT / "saerl_lightning") in (ROOT / "docs" / "tree.md").read_text(), "run `make tree`"


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 130


def test_its_map_leads_to_every_folder():
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
