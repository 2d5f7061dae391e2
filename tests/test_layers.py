"""Folders import from folders to their left only, without circles; few of them know Lightning. Read from the source alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "saerl_lightning"

# What stands left may be imported by all that stands right of it, and by nothing beside or left of it; files that lie beside
# the folders are rooms of their own, but for those of the first group.
ORDER = [
    (
        "",
        "errors",
        "parser",
        "mistakes",
        "hf_attention",
        "records",
        "plan",
        "files",
        "ranges",
        "hub",
        "lock",
        "moved",
        "shipped",
        "progress",
        "given",
        "cluster",
    ),
    ("run_folder", "whole_weights", "prompts", "ranks"),
    ("objective", "policy", "signals", "reward", "assets", "migration"),
    ("evaluation", "rollout", "data"),
    ("plan_page", "online"),
    ("training",),
    ("sae",),
    ("verbs",),
    ("registration",),
    ("cli",),
    ("study",),
    ("causal",),
    ("tools",),
    ("__main__",),
]
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
KNOW_LIGHTNING = {"parser", "ranks", "training", "sae", "verbs", "cli", "tools"}
KNOW_LIGHTNING_TOO = {"data.module", "data.prompt_pool", "data.serving", "data.validation", "study.folder"}
SLOW_TO_IMPORT = {"vllm", "sae_lens", "ray"}  # seconds and more, or not there: inside functions only


def room_of(module: str) -> str:
    """The folder that a module is in, or the file beside the folders that it is."""
    return (module.split(".")[1:2] or [""])[0]


def place_of(module: str) -> int:
    room = room_of(module)
    assert room in PLACE, f"{module} has no place: add its folder to ORDER"
    return PLACE[room]


def imported(tree: ast.AST, module: str) -> Iterator[tuple[str, bool]]:
    """Yields every imported module, and whether it is imported when the file is; TYPE_CHECKING blocks are skipped."""
    pending: list[tuple[ast.AST, bool]] = [(tree, True)]
    while pending:
        node, eager = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += [(child, eager) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write absolute imports"
            yield from ((f"{node.module}.{alias.name}", eager) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, eager and not inside) for child in ast.iter_child_nodes(node)]


def edges(sources: dict[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Which module imports which name, our own modules by their names, and whether as it is imported itself."""
    for module, text in sources.items():
        for name, eager in imported(ast.parse(text), module):
            yield module, name if name in sources or "." not in name else _owner(name, sources), eager


def _owner(name: str, sources: dict[str, str]) -> str:
    owner = name.rpartition(".")[0]
    return owner if owner in sources else name


def violations(sources: dict[str, str]) -> list[str]:
    """The breaches of the rules among modules given by name and text."""
    found = []
    for module, name, eager in edges(sources):
        package, place = name.split(".")[0], place_of(module)
        if package in {"lightning", "pytorch_lightning"}:
            own = module.removeprefix("saerl_lightning.")
            if room_of(module) not in KNOW_LIGHTNING and own not in KNOW_LIGHTNING_TOO:
                found.append(f"{module} imports {package}")
        if package in SLOW_TO_IMPORT and eager:
            found.append(f"{module} imports {package} at its top")
        if package != "saerl_lightning" or name not in sources or room_of(name) == room_of(module):
            continue
        if not (place_of(name) < place or place_of(name) == place == 0):
            found.append(f"{module} imports {name}, which does not stand left of it")
    return found + circles(sources)


def circles(sources: dict[str, str]) -> list[str]:
    """Modules that import each other as they are imported."""
    wanted: dict[str, set[str]] = {module: set() for module in sources}
    for module, name, eager in edges(sources):
        if eager and name in sources and name != module:
            wanted[module].add(name)
    while free := [module for module, names in wanted.items() if not names]:
        wanted = {module: names - {*free} for module, names in wanted.items() if module not in free}
    return [f"{module} is in a circle with {', '.join(sorted(names))}" for module, names in sorted(wanted.items())]


def sources() -> dict[str, str]:
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return names


def test_imports_point_left():
    assert not violations(sources())


PLANTED = dict.fromkeys(
    [
        "saerl_lightning.data.ordering",
        "saerl_lightning.data.module",
        "saerl_lightning.rollout.engine",
        "saerl_lightning.signals.random_signals",
        "saerl_lightning.policy.load",
    ],
    "",
)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("saerl_lightning.plan", "from saerl_lightning.data.ordering import cluster_first"),
        ("saerl_lightning.signals.random_signals", "def late():\n    from saerl_lightning.data import module"),
        ("saerl_lightning.signals.random_signals", "from saerl_lightning.policy.load import Policy"),  # beside it
        ("saerl_lightning.data.ordering", "from saerl_lightning.rollout import engine"),  # beside it
        ("saerl_lightning.data.ordering", "from lightning.pytorch import Trainer"),
        ("saerl_lightning.signals.random_signals", "if True:\n    import sae_lens.saes"),
        ("saerl_lightning.data.ordering", "if TYPE_CHECKING:\n    pass\nelse:\n    import lightning"),
    ],
)
def test_a_planted_violation_is_caught(module, line):
    assert [each for each in violations({**PLANTED, module: line}) if each.startswith(module)]


def test_a_planted_circle_is_caught():
    planted = {
        "saerl_lightning.data.ordering": "from saerl_lightning.data.module import a",
        "saerl_lightning.data.module": "import saerl_lightning.data.ordering",
    }
    assert len(violations({**PLANTED, **planted})) == 2
    late = "def a():\n    import saerl_lightning.data.ordering"
    assert not violations({**PLANTED, **planted, "saerl_lightning.data.module": late})


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("saerl_lightning.policy.load", "if TYPE_CHECKING:\n    from saerl_lightning.data.module import A"),
        ("saerl_lightning.data.ordering", "from saerl_lightning.signals.random_signals import RandomSignals"),
        ("saerl_lightning.data.module", "from saerl_lightning.data.ordering import cluster_first"),
        ("saerl_lightning.data.module", "import lightning"),
        ("saerl_lightning.signals.random_signals", "def load():\n    import sae_lens"),
    ],
)
def test_what_is_allowed_passes(module, line):
    assert not violations({**PLANTED, module: line})


def test_a_module_without_a_place_is_caught():
    with pytest.raises(AssertionError, match="no place"):
        violations({**PLANTED, "saerl_lightning.helpers.strings": "import math"})
