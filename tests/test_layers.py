"""Imports point strictly down, and only the Lightning floors know Lightning. Read from the source, nothing is run."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "saerl_lightning"

# The first pattern that fits a module gives its floor; a module that fits none must be given one here.
FLOORS = [
    (0, "saerl_lightning *lightning.errors *lightning.records *lightning.plan *lightning.staging *lightning.ranges"),
    (0, "*lightning.text_files *lightning.names *lightning.hub"),
    (0, "*lightning.lock *lightning.run_folder"),
    (
        1,
        "*.data.ordering *.data.permutation *.data.logdet *.data.agreement *.data.feature_rows *.data.scores *.data.probe",
    ),
    (1, "*.data.feature_ablation"),
    (5, "*.tools *.tools.*"),
    (1, "*.signals.activations *.signals.trie *.signals.pooling"),
    (1, "*.reward.answer *.reward.marks *.reward.choices *.reward.spelling *.reward.structure *.reward.numbers"),
    (1, "*.reward.values *.reward.equality *.reward.symbols"),
    (1, "*.study.statistics *.study.bootstrap *.study.curves *.study.censoring *.study.multiplicity"),
    (
        1,
        "*.objective.advantage *.objective.surrogate *.objective.aggregation *.policy.logprobs *.evaluation.estimators",
    ),
    (1, "*.policy.head *lightning.attention *lightning.whole_weights"),
    (2, "*.data.callback *.signals.source *.prompts.source *.prompts.reference *.rollout.engine *.reward.reward"),
    (2, "*.objective.objective"),
    (4, "*.data.module *.data.pool *.data.validation *.training *.training.*"),
    (3, "*.data *.signals *.prompts *.rollout *.reward *.objective *.policy *.evaluation *.study *.report"),
    (3, "*.data.* *.signals.* *.prompts.* *.rollout.* *.reward.* *.objective.* *.policy.* *.evaluation.* *.study.*"),
    (3, "*.report.*"),
    (5, "*.cli *.parser *.mistakes *.parts *.overlays *.demo *.demo.* *.__main__"),
]
LIGHTNING_FLOOR = 4
COMPOSITION_FLOOR = 5  # one floor, one room: the tools call the command line
SLOW_TO_IMPORT = {"vllm", "sae_lens"}  # ten seconds and more: inside functions only


def floor_of(module: str) -> int:
    for floor, patterns in FLOORS:
        if any(fnmatch(module, pattern) for pattern in patterns.split()):
            return floor
    raise AssertionError(f"{module} has no floor: add it to FLOORS")


def folder_of(module: str) -> str:
    """The room a module is in; files beside the rooms share one."""
    room = module.split(".")[1:2]
    return room[0] if room and (ROOT / room[0]).is_dir() else ""


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


def violations(sources: dict[str, str]) -> list[str]:
    """The breaches of the layer rules among modules given by name and text."""
    found = []
    for module, text in sources.items():
        floor = floor_of(module)
        for name, eager in imported(ast.parse(text), module):
            package = name.split(".")[0]
            if package in {"lightning", "pytorch_lightning"} and floor < LIGHTNING_FLOOR:
                found.append(f"{module} (F{floor}) imports {package}")
            if package in SLOW_TO_IMPORT and eager:
                found.append(f"{module} imports {package} at its top")
            target = name if name in sources else name.rpartition(".")[0]
            if package != "saerl_lightning" or target not in sources or target == module:
                continue
            below = floor_of(target) < floor
            one_room = floor == COMPOSITION_FLOOR or folder_of(target) == folder_of(module)
            neighbour = floor_of(target) == floor and one_room
            if not below and not neighbour:
                found.append(f"{module} (F{floor}) imports {target} (F{floor_of(target)})")
    return found


def sources() -> dict[str, str]:
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return names


def test_imports_point_down():
    assert not violations(sources())


PLANTED = dict.fromkeys(
    [
        "saerl_lightning.data.ordering",
        "saerl_lightning.data.callback",
        "saerl_lightning.data.sampler",
        "saerl_lightning.data.module",
        "saerl_lightning.signals.source",
        "saerl_lightning.signals.noise",
    ],
    "",
)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("saerl_lightning.plan", "from saerl_lightning.data.ordering import cluster_first"),  # up
        ("saerl_lightning.data.ordering", "import saerl_lightning.data.callback"),  # up, inside a folder
        ("saerl_lightning.data.mixing", "from saerl_lightning.signals.noise import RandomSignals"),  # across
        ("saerl_lightning.data.callback", "from saerl_lightning.signals.source import Features"),  # across, seams
        ("saerl_lightning.signals.noise", "def late():\n    from saerl_lightning.data import module"),  # late, still up
        ("saerl_lightning.data.sampler", "from lightning.pytorch import Trainer"),
        ("saerl_lightning.signals.noise", "if True:\n    import sae_lens.saes"),
        ("saerl_lightning.data.mixing", "if TYPE_CHECKING:\n    pass\nelse:\n    import lightning"),
    ],
)
def test_a_planted_violation_is_caught(module, line):
    assert [v for v in violations({**PLANTED, module: line}) if v.startswith(module)]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            "saerl_lightning.data.mixing",
            "if TYPE_CHECKING:\n    from saerl_lightning.signals.noise import RandomSignals",
        ),
        ("saerl_lightning.data.mixing", "from saerl_lightning.data.sampler import PlanSampler"),  # inside a folder
        ("saerl_lightning.signals.noise", "def load():\n    import sae_lens"),
    ],
)
def test_what_is_allowed_passes(module, line):
    assert not violations({**PLANTED, module: line})


def test_a_module_without_a_floor_is_caught():
    with pytest.raises(AssertionError, match="no floor"):
        violations({**PLANTED, "saerl_lightning.helpers.strings": ""})
