"""The first words of the command line, known before Lightning is imported."""

from __future__ import annotations

LIGHTNINGS = ("fit", "validate", "test", "predict")
COMPOSED = ("plan", "label", "show", "memory", "serve", "simulate")  # read the same configs and flags as a run
TOOLS = {  # with a parser of their own; imported when asked for: a tool may itself run the composition
    "demo": "saerl_lightning.tools.demo:demo",
    "dashboard": "saerl_lightning.tools.dashboard:dashboard",
    "export": "saerl_lightning.tools.export:export",
    "study": "saerl_lightning.tools.study:VERBS",
}
QUICK = ("configs", "import", "init")  # answer without Lightning
EVERY = (*LIGHTNINGS, *COMPOSED, *TOOLS, *QUICK)

DESCRIPTION = (
    "Trains, evaluates and samples policies, composed from YAML configs and flags; what comes later wins. "
    f"Tools with a help of their own (TOOL --help): {', '.join(TOOLS)}. configs lists the shipped configs, init DIR writes a "
    "first run, import converts the settings of TRL or verl."
)
