"""Mutants of a module: cosmic-ray's operators say where and how, a seeded hash says which.

A site is a place in the code with a kind of change (another operator, another number, a negated condition, …); every site
has the same chance, however many changes are possible there, and one of them is drawn. What a site is called does not hang
on line numbers, so a change elsewhere in the file leaves the sample as it was.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

# They need to be told which names to use, or make what no test can tell from the original.
LEFT_OUT = ("VariableReplacer", "VariableInserter")


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Args:
        module: path of the file, relative to the repository.
        line: number of the line that changes.
        before: that line.
        after: what it becomes.
        operator: cosmic-ray's name for the change.
        source: the whole changed module.
        rank: place in the seeded order; small ones are sampled.
    """

    module: str
    line: int
    before: str
    after: str
    operator: str
    source: str
    rank: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by in `equivalent.toml`."""
        return self.module, self.before, self.after


@dataclass(frozen=True)
class Site:
    """A place and a kind of change, with the operators and their occurrences that are possible there."""

    module: str
    rank: str
    choices: tuple[tuple[str, int], ...]


def sites(root: Path, module: str, seed: int) -> list[Site]:
    """All sites of a module, in no order of worth."""
    source = (root / module).read_text()
    lines, nodes, provider = source.split("\n"), list(ast_nodes(get_ast(source))), OperatorProvider()
    found: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = defaultdict(list)
    for name in provider:
        if name in LEFT_OUT:
            continue
        operator, occurrence = provider[name](), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                found[_kind(name), start].append((name, occurrence))
                occurrence += 1
    seen: dict[tuple[str, str], int] = defaultdict(int)
    made = []
    for (kind, (line, _)), choices in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        text = lines[line - 1].strip()
        seen[kind, text] += 1
        made.append(Site(module, _hash(seed, module, kind, text, seen[kind, text]), tuple(choices)))
    return made


def sample(root: Path, modules: Sequence[str], count: int, seed: int) -> Iterator[Mutant]:
    """Yields `count` mutants, or all there are; changes that leave the meaning alone by their form are passed over."""
    everywhere = [site for module in modules for site in sites(root, module, seed)]
    for site in sorted(everywhere, key=lambda site: site.rank):
        if count == 0:
            return
        mutant = _mutant(root, site)
        if mutant is not None:
            count -= 1
            yield mutant


def _mutant(root: Path, site: Site) -> Mutant | None:
    source = (root / site.module).read_text()
    name, occurrence = site.choices[int(site.rank, 16) % len(site.choices)]
    changed = mutate_code(source, OperatorProvider()[name](), occurrence)
    if changed is None or _meaning(changed) in (None, _meaning(source)):
        return None
    lines = [line for line in difflib.ndiff(source.split("\n"), changed.split("\n")) if line[0] in "-+"]
    before = " ".join(line[2:].strip() for line in lines if line[0] == "-")
    after = " ".join(line[2:].strip() for line in lines if line[0] == "+")
    first = next(i for i, (a, b) in enumerate(zip(source.split("\n"), changed.split("\n"), strict=False)) if a != b)
    return Mutant(site.module, first + 1, before, after, name, changed, site.rank)


def _meaning(source: str) -> str | None:
    """The code without annotations and zip's `strict`, which compute nothing; None where it is no code."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
    return ast.dump(tree)


def _kind(operator: str) -> str:
    return operator.split("_")[0]


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
