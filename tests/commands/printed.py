"""Finds every command that the README, the docs, the Makefile's help, `--help` and messages print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    ROOT / "main.py",
    *sorted((ROOT / "saerl_lightning").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "shell", "console")
PROGRAM = (
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/\S+|python3?|main\.py|make|pip|wandb|ray|saerl|pytest|mkdocs|pre-commit|torchrun)"
)
SPAN = re.compile(rf"(?<!`)`({PROGRAM} [^`\n]+)`(?!`)")
LINE = re.compile(rf"^\s*(?:#\s*)?({PROGRAM} .+)$")


@dataclass(frozen=True, order=True)
class Printed:
    """A command as it is printed, on one line, and where."""

    text: str
    place: str  # file:line
    in_block: bool  # in a fenced block, to be copied; else in running text


def commands() -> list[Printed]:
    """All of them, in the order of the files."""
    return [each for part in (_pages(), _make(), _sources(), _configs()) for each in part]


def joined(block: str) -> Iterator[tuple[int, str]]:
    """A block's commands: continued lines joined, comments at their ends dropped."""
    start, held = 0, ""
    for number, line in enumerate(block.splitlines()):
        start = start if held else number
        held += re.sub(r"(?:^|\s+)#(?!\{).*$", "", line)
        if held.endswith("\\"):
            held = held[:-1]
        elif held.strip():
            yield start, " ".join(held.split())
            held = ""
        else:
            held = ""


def _pages() -> Iterator[Printed]:
    for page in PAGES:
        text, name = page.read_text(), page.relative_to(ROOT)
        for fence in FENCE.finditer(text):
            line = text.count("\n", 0, fence.start()) + 2
            if fence[1] in SHELL or (not fence[1] and re.match(PROGRAM, fence[2])):
                yield from (Printed(each, f"{name}:{line + n}", True) for n, each in joined(fence[2]))
        prose = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
        for span in SPAN.finditer(prose):
            yield Printed(" ".join(span[1].split()), f"{name}:{prose.count(chr(10), 0, span.start()) + 1}", False)


def _make() -> Iterator[Printed]:
    for number, line in enumerate((ROOT / "Makefile").read_text().splitlines(), 1):
        if found := re.match(r"([a-z0-9-]+):.*?## ", line):
            yield Printed(f"make {found[1]}", f"Makefile:{number}", True)


def _sources() -> Iterator[Printed]:
    for path in SOURCES:
        name = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            for offset, line in enumerate(node.value.split("\n")):
                spans = [m[1] for m in SPAN.finditer(line)]
                found = LINE.match(line)
                if found and line.startswith("    "):
                    spans.append(re.split(r"\s{3,}", found[1])[0])
                for text in spans:
                    yield Printed(" ".join(text.split()), f"{name}:{node.lineno + offset}", False)


def _configs() -> Iterator[Printed]:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            comment = line.partition("# ")[2]
            if found := re.search(rf"(?:^|`|\s)({PROGRAM} [^;`]+)", comment):
                yield Printed(found[1].strip(), f"{path.relative_to(ROOT)}:{number}", False)
