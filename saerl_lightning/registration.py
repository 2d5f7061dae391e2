"""Registers all classes for short names in YAML and flags: signals, operations, objectives, rewards, engines.

jsonargparse finds the subclasses that are imported. The package's `__init__` does not import them, so that grader processes
start fast.
"""

from __future__ import annotations

import importlib
import pkgutil

import saerl_lightning

FOLDERS = (
    "data",
    "objective",
    "objective.keeping",
    "objective.reweighting",
    "online",
    "online.beliefs",
    "online.mixers",
    "online.rules",
    "policy",
    "prompts",
    "prompts.worlds",
    "ranks",
    "reward",
    "rollout",
    "rollout.transfer",
    "sae",
    "signals",
    "training",
    "training.replay",
    "training.rounds",
    "training.tables",
)

# They define no class that YAML can name, and must import transformers at their top; HFEngine imports them when it starts.
WITHOUT_CLASSES = {"saerl_lightning.rollout.policy_decoder"}


def register_classes() -> None:
    """Imports every module of the folders. Heavy libraries are imported inside functions and thus not loaded here."""
    for folder in FOLDERS:
        package = importlib.import_module(f"{saerl_lightning.__name__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in WITHOUT_CLASSES:
                importlib.import_module(module.name)
