"""The first words of the command line, known before Lightning is imported."""

from __future__ import annotations

LIGHTNINGS = ("fit", "validate", "test", "predict")
COMPOSED = ("plan", "label", "show")  # read the same configs and flags as a run
TOOLS = {  # with a parser of their own; imported when asked for: a tool may itself run the composition
    "demo": "saerl_lightning.tools.demo:demo",
    "dashboard": "saerl_lightning.tools.dashboard:dashboard",
    "export": "saerl_lightning.tools.export:export",
    "study": "saerl_lightning.tools.study:VERBS",
}
QUICK = ("configs", "import", "init")  # answer without Lightning
EVERY = (*LIGHTNINGS, *COMPOSED, *TOOLS, *QUICK)
