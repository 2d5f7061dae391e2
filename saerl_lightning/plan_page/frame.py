"""Frame of every HTML page, `base.html`: its template engine, styles and scripts, and data as JSON for a script block.

A page works from a local disk and loads nothing from other hosts, which its Content-Security-Policy forbids.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure

PACKAGE = __name__.rpartition(".")[0]  # package that contains the plan page's template, style and script


def plain(figure: Figure) -> dict[str, Any]:
    """Converts a figure to JSON without plotly's default template, because the page has its own style."""
    figure.update_layout(template="none")
    written = figure.to_json()
    assert written is not None
    return json.loads(written)


def script_json(data: dict[str, Any]) -> str:
    """Encodes data as JSON for a script block, with characters escaped that could end the block."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def templates(package: str = PACKAGE) -> Environment:
    """Builds the template engine of a page: the package's own templates, and `base.html`, the frame of all pages."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(each, ".") for each in (package, PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str, package: str = PACKAGE) -> str:
    """Reads a template, style or script file of a page."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """Returns plotly's whole script, so that the page loads nothing from a host."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
