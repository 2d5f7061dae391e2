"""Entries of `Args` and `Attributes` make sense alone, because `--help` or an editor shows each beside its name."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "saerl_lightning"

ENTRY = re.compile(r"(?:\*{0,2}\w+)(?: \([^)]*\))?:(?: |$)")
LEANS_ON_ANOTHER = re.compile(r"(?:of (?:that|this|the same)|the same|as above|likewise|its|their|they|it)\b", re.I)


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and text of every entry in the `Args` or `Attributes` section of a docstring."""
    inside, name, text = False, "", ""
    for line in [*cleandoc(docstring).splitlines(), "end"]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and (indent == 0 or (indent == 4 and ENTRY.match(line.strip()))) and name:
            yield name, text
            name, text = "", ""
        if line.strip() and indent == 0:
            inside = line.strip() in ("Args:", "Attributes:")
        elif inside and indent == 4 and ENTRY.match(line.strip()):
            name, _, text = (part.strip() for part in line.partition(":"))
        elif inside and line.strip():
            text = f"{text} {line.strip()}".strip()


def faults(text: str) -> list[str]:
    """What a reader of `--help` stumbles over in one entry."""
    first = text.lstrip("`*'\"([{")
    found = []
    if first[:1].islower() and not text.startswith("`"):
        found.append("begins in lower case")
    if LEANS_ON_ANOTHER.match(text):
        found.append("leans on another entry")
    if len(text.split()) < 3:
        found.append("has fewer than three words")
    if not text.endswith((".", ".)", "?", ":", "`")):
        found.append("has no full stop")
    return found


def documented(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line of the docstring's owner, name and text of every `Args` entry of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for name, text in entries(ast.get_docstring(node) or ""):
                yield getattr(node, "lineno", 1), name, text


def test_entries_are_read_with_their_continuation_lines():
    docstring = (
        "Trains.\n\nArgs:\n    seed: of that draw\n    rate: A number,\n        from 0 to 1.\n\nReturns:\n    x: y"
    )
    assert list(entries(docstring)) == [("seed", "of that draw"), ("rate", "A number, from 0 to 1.")]
    assert faults("of that draw") == ["begins in lower case", "leans on another entry", "has no full stop"]
    assert faults("Likewise.") == ["leans on another entry", "has fewer than three words"]
    assert faults("Seed of the random draw.") == []


def torn(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Arguments whose entry stands outside of `Args`, as where its heading was lost, or stands there twice."""
    docstring = ast.get_docstring(function) or ""
    read = [name for name, _ in entries(docstring)]
    arguments = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
    written = re.findall(r"^ *(\w+): ", cleandoc(docstring), re.MULTILINE)
    return [name for name in written if name in arguments and (name not in read or written.count(name) > 1)]


def test_an_entry_that_lost_its_heading_is_found():
    [function] = ast.parse('def f(rows, index):\n    """Adds.\n\n    rows: Token rows.\n    index: That.\n    """').body
    assert torn(function) == ["rows", "index"]  # pyright: ignore[reportArgumentType]


def test_no_entry_stands_outside_of_its_section():
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno} {names}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (names := torn(node))
    ]
    assert not found, "\n".join(found)


def test_no_sentence_stands_twice_in_a_docstring():
    found = [
        f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)} {line!r}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for line, times in Counter((ast.get_docstring(node) or "").splitlines()).items()
        if times > 1 and len(line.strip()) > 24
    ]
    assert not found, "\n".join(found)


def test_every_argument_makes_sense_alone_in_the_help():
    found = [
        f"{file.relative_to(PACKAGE)}:{line} {name}: {text!r} {', '.join(wrong)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for line, name, text in documented(file)
        if (wrong := faults(text))
    ]
    assert not found, "\n".join(found)
