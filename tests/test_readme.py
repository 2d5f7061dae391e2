"""The README's tree is the package's tree."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tree_is_the_real_one():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.tree(ROOT / "saerl_lightning") in (ROOT / "README.md").read_text(), "run `make readme`"
