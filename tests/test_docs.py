"""The documentation is run: Python blocks are executed, YAML blocks parsed by the command line, metric names compared."""

import ast
import functools
import importlib
import itertools
import os
import re
import subprocess
import sys
import typing
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import lightning
import pytest
import torch
import yaml

from saerl_lightning import mistakes
from saerl_lightning.cli import run
from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.terms import KLPenalty, SamplerCorrection
from saerl_lightning.ranges import constructors
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.training import metrics
from saerl_lightning.training.checkpoints import RunCheckpoint
from saerl_lightning.training.guard import MismatchGuard

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WITH_PYTHON = sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text())
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    title: str  # the file the reader is told to write, "" for none
    text: str
    place: str  # page:line, for tracebacks


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    found = [
        Block(m[1], m[2] or "", m[3], f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}")
        for m in FENCE.finditer(text)
    ]
    assert len(found) == text.count("\n```") // 2, f"{page}: a fence is written in a way this test does not read"
    return [block for block in found if block.language == language]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, as beside `main.py`; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if (tmp_path / f"{name}.py").is_file():
            del sys.modules[name]


def write_modules(page: Path, desk: Path) -> None:
    for block in blocks(page, "python"):
        if block.title:
            (desk / block.title).write_text(block.text)
    importlib.invalidate_caches()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")  # of Lightning, about itself
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run(page, desk):
    """A titled block becomes a module; the others are run in order, in one namespace. The page itself says what holds."""
    assert any(
        isinstance(node, ast.Assert) for block in blocks(page, "python") for node in ast.walk(ast.parse(block.text))
    )
    write_modules(page, desk)
    namespace = {"__name__": f"docs_{page.stem}"}
    for block in blocks(page, "python"):
        if block.title:
            importlib.import_module(Path(block.title).stem)
        else:
            exec(compile(block.text, block.place, "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run_as_scripts(page, desk):
    """As a reader runs them: in a process of their own."""
    write_modules(page, desk)
    loose = [block.text for block in blocks(page, "python") if not block.title]
    scripts = [desk / block.title for block in blocks(page, "python") if block.title.startswith("try_")]
    if loose:
        scripts.append(desk / "script.py")
        scripts[-1].write_text("\n".join(loose))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for script in scripts:
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script.name}: {done.stderr[-3000:]}"


PAGES_WITH_YAML = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page, "yaml")]


@pytest.mark.parametrize("page", PAGES_WITH_YAML, ids=lambda page: page.stem)
def test_yaml_blocks_are_accepted_after_the_baseline(page, desk, capsys):
    write_modules(page, desk)
    for block in blocks(page, "yaml"):
        overlay = desk / "overlay.yaml"
        overlay.write_text(block.text)
        run(["fit", "-c", str(ROOT / "configs/grpo.yaml"), "-c", str(overlay), "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"], block.place


def logged_names() -> set[str]:
    """Every name that a step and an evaluation log, with the parts that vary written as in the page."""
    prompt = Prompt.asking("p", "?", "3", topic="sums", labels={"level": 2.0})
    rollouts = Rollouts.pack([[1]], [[2], [3]], [[-1.0], [-1.0]], [False, True], ["3", "4"], 2, 0)
    rewards = torch.tensor([[1.0, 0.0]])
    logp, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    inputs = LossInputs(logp, logp, logp, logp, mask, torch.ones(1), logp, 1.0, 1.0, 1.0, 1, 0.0)
    phases = ["generate", "score", "reference", "old", "forward", "backward", "optimizer", "sync"]
    seconds, lengths = {f"time/{phase}": 1.0 for phase in phases}, rollouts.completion_lengths
    accuracy = SampledAccuracy(2, ["sums"])
    accuracy.update([prompt], rollouts, rewards)
    step = {
        **metrics.Completions(
            {"<name>": rewards}, rewards, rewards, lengths, rollouts.truncated, lengths, logp[0], lengths[:1]
        ).metrics(0),
        **metrics.throughput_metrics(seconds | {"rollouts/generated_tokens": 2.0, "rollouts/scored_tokens": 4.0}),
        **seconds,
        **GRPO(kl=KLPenalty(0.1), correction=SamplerCorrection())(inputs)[1],
        **MismatchGuard().check(logp, logp, mask, torch.float32),
    }
    replaced = {"avg@2": "avg@k", "maj@2": "maj@k", "pass@1": "pass@n", "pass@2": "pass@n"}
    replaced |= {"acc/topic/sums": "acc/topic/<topic>", "acc/level/2": "acc/level/<level>"}
    return set(step) | {f"<stage>/<set>/{replaced.get(name, name)}" for name in accuracy.compute()}


def test_every_logged_name_is_defined():
    text = (DOCS / "metrics.md").read_text()
    assert not {name for name in logged_names() if f"`{name}`" not in text}


def said(node: ast.AST) -> str | None:
    """A string of the source as it is printed, with a gap for every value put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else f"…{inside(part)}…" for part in node.values)
    return None


def inside(part: ast.AST) -> str:
    """The strings that a conditional inside an f-string chooses from."""
    return "".join(n.value for n in ast.walk(part) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def sources() -> list[str]:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "saerl_lightning").rglob("*.py")]
    return [text for tree in trees for node in ast.walk(tree) if (text := said(node)) is not None]


OTHERS = {
    "found PhaseProgressBar in callbacks list",
}  # jsonargparse's, Lightning's


def test_every_message_in_troubleshooting_is_one_that_the_code_gives():
    page, given = (DOCS / "troubleshooting.md").read_text(), sources()
    tables = [part.split("\n\n")[0] for part in page.split("| message | ")[1:]]
    messages = {row for table in tables for row in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}
    assert len(messages) > 50
    patterns = {m: re.compile(".*".join(re.escape(part.strip()) for part in m.split("…")), re.DOTALL) for m in messages}
    assert not {m for m, pattern in patterns.items() if not any(map(pattern.search, given))} - OTHERS


SECTIONS = {
    "model": lightning.LightningModule,
    "data": lightning.LightningDataModule,
    "trainer": lightning.Trainer,
    "checkpoint": RunCheckpoint,
}
FILES = ("jsonl", "yaml", "py", "csv", "parquet", "arrow", "json", "md", "html", "ckpt", "safetensors", "txt", "pt")
NO_SETTINGS = {
    "data.curiculum", "data.mixing.fracton", "data.mixing.fractoin",  # examples of mistakes
    "trainer.nnodes", "data.image_key", "data.video_key", "data.audio_key", "data.shuffle", "data.train_batch_size",  # verl's
    "data.tokenizer", "data.plan", "sae.encode",  # attributes in Python
}  # fmt: skip
DOTTED = re.compile(r"`(?:--)?([a-z]\w*(?:\.[a-z0-9_]+)+)(?:[ =:+][^`]*)?`")


@functools.cache
def settings_by_owner() -> dict[str, set[str]]:
    """What may stand behind a name and a dot: arguments of every class that a section or argument of the name takes."""
    found: dict[str, set[str]] = {}
    for section, base in SECTIONS.items():
        for each in [base, *(each for each in mistakes._shipped() if issubclass(each, base))]:
            found.setdefault(section, set()).update(mistakes._arguments(each))
    parts = [each for each in mistakes._shipped() if each.__module__.startswith("saerl_lightning.")]
    pending = [*parts, *SECTIONS.values()]
    seen: set[type] = set()
    while pending:
        owner = pending.pop()
        if owner in seen:
            continue
        seen.add(owner)
        for kind in constructors(owner):
            for name, hint in mistakes._hints(kind).items():
                fits = [each for each in parts if mistakes._takes(hint, each)]
                fits += [each for each in nested(hint) if is_dataclass(each) or each.__module__.startswith("saerl")]
                pending += fits
                for each in fits:
                    found.setdefault(name, set()).update(mistakes._arguments(each))
    return found


def nested(hint: object) -> list[type]:
    """The classes inside a type."""
    inner = [each for part in typing.get_args(hint) for each in nested(part)]
    return [*inner, hint] if isinstance(hint, type) and not typing.get_origin(hint) else inner


def unknown_settings(text: str) -> list[str]:
    """Dotted names in backticks whose first part is a section or an argument, and of which a later part is no argument."""
    known, wrong = settings_by_owner(), []
    for name in DOTTED.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        parts = [
            part for part in name.split(".") if not part.isdigit() and part not in ("init_args", "class_path", "help")
        ]
        if parts[0] in known and parts[-1] not in FILES and name not in NO_SETTINGS:
            pairs = itertools.pairwise(parts)
            wrong += [name] if any(part not in known.get(owner, {part}) for owner, part in pairs) else []
    return wrong


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_every_setting_in_backticks_exists(page):
    # The other trainers' own arguments stand left in their tables.
    text = re.sub(r"<!-- (TRL|verl) -->.*?<!-- /\1 -->", "", page.read_text(), flags=re.DOTALL | re.IGNORECASE)
    assert unknown_settings(text) == []


def test_a_setting_that_does_not_exist_is_found():
    text = "`kl.beta` `kl.weight` `data.batch_sise: 3` `--model.sampling.group_size 4` `model.objective.kl.beta` `labels.csv`"
    assert unknown_settings(text) == ["kl.beta", "data.batch_sise", "model.objective.kl.beta"]


def test_the_reference_names_the_file_of_each_operation():
    """A row of the table names a file of the data folder and classes; each class is in its file."""
    rows = re.findall(r"^\| `\w+` \| `(\w+)` \| (.*) \|$", (DOCS / "reference" / "data.md").read_text(), re.MULTILINE)
    named = {(file, name) for file, cells in rows for name in re.findall(r"`(\w+)`", cells)}
    assert len(named) > 15
    folder = DOCS.parent / "saerl_lightning" / "data"
    assert not [(file, name) for file, name in named if f"class {name}(" not in (folder / f"{file}.py").read_text()]


def test_the_page_of_the_tree_has_every_file():
    lines = (DOCS / "tree.md").read_text().splitlines()
    named = [line.split("── ")[1].split(" ")[0] for line in lines if "── " in line and ".py " in line]
    packages = [path.parent for path in (ROOT / "saerl_lightning").rglob("__init__.py")]  # not the files `init` copies
    files = [path for folder in packages for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted([*(path.name for path in files), "__init__.py"])
    assert not [line for line in lines if ".py " in line and line.rstrip().endswith(".py")]  # each says what it is


@pytest.mark.slow
def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = ["mkdocs", "build", "--strict", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path)]
    built = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    loaded = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"')
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        for match in loaded.finditer(page.read_text()):
            address = match[1] or match[2]
            assert "//" not in address, f"{page.relative_to(tmp_path)} loads {address}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet
    for script in tmp_path.rglob("*.js"):
        assert not re.search(r"https://(?:unpkg|api\.github|cdn)", script.read_text()), script
