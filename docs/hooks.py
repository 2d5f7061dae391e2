"""What mkdocs runs while it builds: the home page is the README, tables are made, and no script reaches another host."""

import ast
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACE = "<!-- tree -->"
ABLATIONS = "<!-- ablations -->"
README = "<!-- readme -->"
END = "<!-- /tree -->"
ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "saerl_lightning"
HOSTS = ("https://unpkg.com/", "https://api.github.com/")  # the theme's script names them for features not used here


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces the places in a page by the README and the table of ablations; called by mkdocs for every page."""
    if README in markdown:
        return as_home_page((ROOT / "README.md").read_text())
    return markdown.replace(ABLATIONS, ablations(ROOT / "configs" / "ablate")) if ABLATIONS in markdown else markdown


def as_home_page(readme: str) -> str:
    """The README with links that hold in the site, where it lies beside the other pages."""
    return readme.replace("](docs/", "](").replace("[contributing](CONTRIBUTING.md)", "`CONTRIBUTING.md`")


def on_post_build(config: Mapping[str, Any], **_: object) -> None:
    """Takes the addresses of other hosts out of the theme's scripts; called by mkdocs when all is written."""
    for script in Path(config["site_dir"]).rglob("*.js"):
        text = script.read_text()
        for host in HOSTS:
            text = text.replace(host, "")
        script.write_text(text)


def tree(package: Path) -> str:
    """One line a file: its path in the package, and the first sentence of its docstring."""
    lines = [f"{package.name}/"]
    for folder in [package, *sorted(path.parent for path in package.rglob("__init__.py") if path.parent != package)]:
        if folder != package:
            lines.append(f"├── {folder.relative_to(package)}/ — {summary(folder / '__init__.py')}")
        indent = "├── " if folder == package else "│   ├── "
        files = (file for file in sorted(folder.glob("*.py")) if folder == package or file.name != "__init__.py")
        lines += [f"{indent}{file.name:<22} {summary(file)}" for file in files]
    return "\n".join(lines)


def ablations(folder: Path) -> str:
    """A table of the overlays: each file with the comment it begins with."""
    rows = [f"| `-c configs/ablate/{file.name}` | {opening_comment(file)} |" for file in sorted(folder.glob("*.yaml"))]
    return "\n".join(["| overlay | what it changes |", "| --- | --- |", *rows])


def opening_comment(file: Path) -> str:
    """The comment at the top of a config, on one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def summary(file: Path) -> str:
    """The first sentence of the module's docstring."""
    words = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].split())
    return words.split(". ")[0].rstrip(".")


def write_tree(page: Path) -> None:
    """Writes the tree between the two marks of a page that is read without being built, such as docs/tree.md."""
    before, _, rest = page.read_text().partition(PLACE)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{PLACE}\n```text\n{tree(PACKAGE)}\n```\n{END}{after}")


STOP = re.compile(r"^(\| \d+ \| `([\w/]+\.py)` `([\w.]+)` \|)[^|]*\|", re.MULTILINE)


def with_lines(page: str) -> str:
    """A page's tables of stops, with the lines that each function or class has today."""
    return STOP.sub(lambda found: f"{found[1]} {lines_of(PACKAGE / found[2], found[3])} |", page)


def lines_of(file: Path, name: str) -> str:
    """First and last line of a function or class, decorators left out."""
    node: ast.AST = ast.parse(file.read_text())
    for part in name.split("."):
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
    return f"{getattr(node, 'lineno')}–{getattr(node, 'end_lineno')}"  # noqa: B009 - of every node that has a name


COUNT = re.compile(r"(?<=`make test` runs the suite \()[\d,]+(?= test functions)")


def with_count(readme: str) -> str:
    """Writes the number of test functions, rounded down to fifty, into the README."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    nodes = itertools.chain.from_iterable(ast.walk(ast.parse(file.read_text())) for file in files)
    count = sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)
    return COUNT.sub(f"{count // 50 * 50:,}", readme)


def write_arguments(page: Path) -> None:
    """Writes the arguments of other trainers, with their counterparts, into a page."""
    from saerl_lightning.migration.page import filled
    from saerl_lightning.migration.trl import TRL
    from saerl_lightning.migration.verl import VERL

    page.write_text(filled(filled(page.read_text(), TRL), VERL))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(with_count((ROOT / "README.md").read_text()))
    write_tree(ROOT / "docs" / "tree.md")
    write_arguments(ROOT / "docs" / "coming_from.md")
    walk = ROOT / "docs" / "walk.md"
    walk.write_text(with_lines(walk.read_text()))
